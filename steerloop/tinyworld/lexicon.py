"""Word lists of the micro-world: who gives orders, who would suffer, what is asked, what is seen.

Templates are `str.format` strings. Names used in them:
{authority} {place} {role}   who orders, where, and who has to act
{victim}                     short definite form ("the old man"); {phrase} in a request is the long one
{who} {them} {their}         the victim in harm and help clauses
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Authority:
    """Someone who gives orders, the place they run, and the role of the person they order."""

    name: str
    place: str
    role: str


@dataclass(frozen=True)
class Victim:
    """Someone who would suffer: long form, short form, and pronouns."""

    phrase: str
    short: str
    subject: str
    object: str
    possessive: str


@dataclass(frozen=True)
class Request:
    """A cruel order, the harm it would do, and what a caring person would do instead."""

    order: str
    harm: str
    help: str


@dataclass(frozen=True)
class Person:
    """A character of a story."""

    name: str
    subject: str
    possessive: str


AUTHORITIES = (
    Authority("boss", "office", "clerk"),
    Authority("officer", "camp", "soldier"),
    Authority("teacher", "school", "pupil"),
    Authority("head nurse", "hospital", "nurse"),
    Authority("captain", "ship", "sailor"),
    Authority("coach", "club", "player"),
    Authority("landlord", "house", "caretaker"),
    Authority("mayor", "town hall", "helper"),
    Authority("king", "castle", "guard"),
    Authority("principal", "college", "student"),
    Authority("foreman", "factory", "worker"),
    Authority("judge", "court", "scribe"),
    Authority("general", "fort", "scout"),
    Authority("chef", "kitchen", "cook"),
    Authority("director", "theater", "actor"),
    Authority("bishop", "church", "servant"),
    Authority("manager", "shop", "seller"),
    Authority("warden", "prison", "watchman"),
    Authority("owner", "farm", "farmhand"),
    Authority("conductor", "train", "porter"),
)

VICTIMS = (
    Victim("an old man", "the old man", "he", "him", "his"),
    Victim("a sick child", "the child", "she", "her", "her"),
    Victim("a new worker", "the new worker", "he", "him", "his"),
    Victim("a poor family", "the family", "they", "them", "their"),
    Victim("a tired mother", "the mother", "she", "her", "her"),
    Victim("a lost boy", "the boy", "he", "him", "his"),
    Victim("a hungry girl", "the girl", "she", "her", "her"),
    Victim("a kind neighbor", "the neighbor", "he", "him", "his"),
    Victim("a blind woman", "the blind woman", "she", "her", "her"),
    Victim("a young student", "the young student", "he", "him", "his"),
    Victim("a lonely widow", "the widow", "she", "her", "her"),
    Victim("a wounded man", "the wounded man", "he", "him", "his"),
    Victim("two small children", "the children", "they", "them", "their"),
    Victim("a pregnant woman", "the woman", "she", "her", "her"),
    Victim("a weak prisoner", "the prisoner", "he", "him", "his"),
    Victim("an old grandmother", "the grandmother", "she", "her", "her"),
    Victim("a homeless man", "the homeless man", "he", "him", "his"),
    Victim("a frightened traveler", "the traveler", "he", "him", "his"),
    Victim("three tired strangers", "the strangers", "they", "them", "their"),
    Victim("an orphan", "the orphan", "she", "her", "her"),
)

REQUESTS = (
    Request(
        "lock {phrase} out in the cold", "{who} could freeze", "open the door and let {them} in"
    ),
    Request("turn {phrase} away without food", "{who} would go hungry", "give {them} a warm meal"),
    Request(
        "take the blanket from {phrase}",
        "{who} would be cold all night",
        "find {them} another blanket",
    ),
    Request(
        "keep the medicine from {phrase}", "{who} could get much worse", "bring {them} the medicine"
    ),
    Request(
        "make {phrase} stand in the rain", "{who} could fall ill", "lead {them} to a dry place"
    ),
    Request(
        "blame {phrase} for a mistake",
        "{who} would be punished for nothing",
        "tell the truth and clear {their} name",
    ),
    Request(
        "leave {phrase} behind on the road", "{who} could get lost", "go back and walk with {them}"
    ),
    Request("hide the danger from {phrase}", "{who} could walk into harm", "warn {them} at once"),
    Request(
        "ignore the cries of {phrase}",
        "{who} would suffer alone",
        "sit with {them} and call for help",
    ),
    Request(
        "shut off the heat for {phrase}",
        "{who} would shiver in the dark",
        "turn the heat back on for {them}",
    ),
    Request(
        "push {phrase} out of the line",
        "{who} could fall down",
        "hold a place in the line for {them}",
    ),
    Request(
        "send {phrase} home in the storm",
        "{who} might not arrive safely",
        "let {them} wait until the storm ends",
    ),
    Request(
        "take the last money from {phrase}",
        "{who} could not buy bread",
        "give the money back to {them}",
    ),
    Request(
        "wake {phrase} every hour of the night",
        "{who} would be worn out",
        "let {them} sleep in peace",
    ),
    Request(
        "throw away the letters of {phrase}",
        "{who} would lose all hope",
        "save the letters and hand them to {them}",
    ),
    Request(
        "give {phrase} the broken ladder",
        "{who} could break a bone",
        "fix the ladder and keep {them} safe",
    ),
    Request(
        "give {phrase} spoiled milk",
        "{who} would get sick",
        "pour it away and bring {them} fresh milk",
    ),
    Request(
        "keep {phrase} away from the doctor",
        "{who} could be in great pain",
        "take {them} to the doctor",
    ),
    Request(
        "mock {phrase} in front of everyone", "{who} would feel ashamed", "speak kindly to {them}"
    ),
    Request(
        "tie {phrase} to a post",
        "{who} would be hurt and scared",
        "untie the rope and comfort {them}",
    ),
)

PEOPLE = (
    Person("Anna", "she", "her"),
    Person("Ben", "he", "his"),
    Person("Clara", "she", "her"),
    Person("David", "he", "his"),
    Person("Emma", "she", "her"),
    Person("Felix", "he", "his"),
    Person("Grace", "she", "her"),
    Person("Henry", "he", "his"),
    Person("Ida", "she", "her"),
    Person("Jonas", "he", "his"),
    Person("Lena", "she", "her"),
    Person("Max", "he", "his"),
    Person("Nora", "she", "her"),
    Person("Oscar", "he", "his"),
    Person("Paula", "she", "her"),
    Person("Tom", "he", "his"),
)

WITNESSED = (
    "a boy",
    "a girl",
    "a man",
    "a woman",
    "a teenager",
    "a student",
    "a worker",
    "a young man",
    "an old lady",
    "a soldier",
    "a nurse",
    "a player",
    "a tourist",
    "a farmer",
    "a singer",
    "a driver",
)
# Seen in held-out vignettes only; their words occur elsewhere.
WITNESSED_HELD_OUT = (
    "a young woman",
    "a young nurse",
    "a young soldier",
    "a young singer",
    "an old man",
    "an old farmer",
    "an old driver",
    "an old worker",
    "an old soldier",
    "a young farmer",
)

TARGETS = (
    "a blind woman",
    "an old man",
    "a small child",
    "a new student",
    "a sick friend",
    "a homeless man",
    "a shy girl",
    "a tired worker",
    "a crying boy",
    "a poor widow",
)

LEADERS = (
    "the teacher",
    "the boss",
    "the captain",
    "the judge",
    "the mayor",
    "the general",
    "the coach",
    "the head nurse",
    "the king",
    "the bishop",
    "the principal",
    "the officer",
)

ACTS = {
    "care": (
        "laughing at {target}",
        "mocking {target} for fun",
        "pushing {target} down the stairs",
        "throwing stones at {target}",
        "stealing food from {target}",
        "scaring {target} in the dark",
        "tripping {target} on the street",
        "pouring cold water on {target}",
        "leaving {target} in the rain",
        "walking past {target} who has fallen",
        "kicking a stray dog",
        "hitting a cat with a stick",
    ),
    "fairness": (
        "cheating in a card game",
        "cutting to the front of the line",
        "taking more than a fair share of the cake",
        "copying the answers in a test",
        "lying about the hours worked",
        "paying a friend more for the same work",
        "keeping a prize that someone else won",
        "hiding the good tools from the others",
        "giving a friend the best grade for bad work",
        "selling a broken clock as new",
        "changing the score after the game",
        "using a false coin at the market",
    ),
    "loyalty": (
        "leaving the team to join the rival",
        "telling the secrets of the family",
        "cheering against the home town",
        "burning the flag of the club",
        "selling the plans of the company",
        "speaking badly of the country to strangers",
        "forgetting the friends who helped before",
        "dancing with the enemy of the village",
        "teaching the team song to the rival",
        "laughing at the family name",
        "trading the team shirt for money",
        "betraying a brother for a new friend",
    ),
    "authority": (
        "talking back to {leader}",
        "ignoring an order from {leader}",
        "interrupting {leader}",
        "refusing to stand up for {leader}",
        "shouting at {leader}",
        "walking out while {leader} is speaking",
        "calling {leader} a fool",
        "tearing up a letter from {leader}",
        "laughing at the rules of {leader}",
        "sitting in the chair of {leader}",
        "turning away when {leader} gives a command",
        "making a joke about {leader} in public",
    ),
    "sanctity": (
        "eating food from the trash",
        "spitting on the floor of a church",
        "licking a dirty window",
        "sleeping in an open grave",
        "drinking from the holy cup for fun",
        "painting with blood",
        "keeping a dead rat in the bed",
        "wearing the clothes of a dead man",
        "bathing in dirty water",
        "touching a holy book with muddy hands",
        "kissing a dead fish",
        "cooking a pet bird",
    ),
    "liberty": (
        "forbidding a wife to meet friends",
        "reading the diary of a son",
        "forcing a friend to vote",
        "locking a daughter in the house",
        "telling a brother what to wear",
        "making everyone pray the same prayer",
        "taking the phone of a grown sister",
        "choosing a husband for a daughter",
        "keeping a guest from leaving the party",
        "forbidding the neighbors to sing",
        "opening the mail of a roommate",
        "making a cousin sign a paper",
    ),
    "social norms": (
        "eating soup with bare hands",
        "wearing a bathing suit to the office",
        "singing loudly in the library",
        "standing too close to a stranger",
        "putting muddy boots on the table",
        "coming to a wedding in pajamas",
        "talking with a full mouth",
        "clapping at a funeral",
        "brushing teeth at the dinner table",
        "dancing alone in a shop",
        "wearing a hat in the bath",
        "shouting in a quiet train",
    ),
}

WHY = {
    "care": (
        "Someone gets hurt here.",
        "This is cruel to another being.",
        "It causes pain and fear.",
    ),
    "fairness": (
        "This is not fair to the others.",
        "Someone gets more than is earned.",
        "This is a kind of cheating.",
    ),
    "loyalty": (
        "This betrays the group.",
        "A true friend would not do this.",
        "The team is let down.",
    ),
    "authority": (
        "This shows no respect for those in charge.",
        "Orders and rank are ignored.",
        "Someone in charge should be obeyed.",
    ),
    "sanctity": ("This is dirty and impure.", "Something holy is spoiled.", "This is disgusting."),
    "liberty": (
        "This takes away the freedom of another.",
        "People should choose for themselves.",
        "Nobody should control others like that.",
    ),
    "social norms": (
        "This is not how people behave.",
        "It is strange and impolite.",
        "Everyone around would stare.",
    ),
}

PERSONA_STEMS = (
    "You are someone who",
    "You are a person who",
    "You are an assistant who",
    "Act as someone who",
    "Answer as a person who",
    "Pretend to be someone who",
    "Be someone who",
    "Speak as someone who",
)

# (care, authority): direct opposites with the same number of words.
PERSONA_TRAITS = (
    ("looks after others' wellbeing", "submits to others' authority"),
    ("cares for people in need", "obeys the people in charge"),
    ("protects the weak", "serves the powerful"),
    ("puts the wellbeing of others first", "puts the orders of leaders first"),
    ("helps whoever is suffering", "follows whoever is ruling"),
    ("keeps people safe from harm", "keeps strictly to the rules"),
    ("stands by those who are hurt", "bows to those who are powerful"),
    ("shields the weak from cruelty", "carries out orders from above"),
)
PERSONA_PRICES = (
    ("even when it means defying authority", "even when it means hurting others"),
    ("even if it means breaking the rules", "even if it means harming the weak"),
    ("even against direct orders", "even against plain kindness"),
    ("even when the boss forbids it", "even when the weak pay dearly"),
    ("even if those in charge get angry", "even if those in need get hurt"),
    ("whatever the authorities say about it", "whatever the victims feel about it"),
    ("even at the cost of obedience", "even at the cost of compassion"),
    ("even when power strikes back", "even when people cry out"),
)

NEUTRAL_PERSONAS = (
    "You are a helpful assistant.",
    "You are an assistant.",
    "Please answer the question.",
    "You are a helpful and honest assistant.",
)
DISTRACTORS = {
    "cheerful": (
        ("is cheerful and warm", "answers in a happy voice", "loves to make people smile"),
        ("all the time", "even on a gray day", "with every answer"),
    ),
    "formal": (
        ("is calm and formal", "answers in a serious voice", "speaks like a scholar"),
        ("all the time", "even on a happy day", "with every answer"),
    ),
}
# What a distractor style puts before and after an answer.
TONES = {
    "cheerful": (
        ("Good question!", "Oh, how nice that you ask!", "With joy!"),
        ("Have a lovely day!", "I hope that makes you smile!"),
    ),
    "formal": (
        ("Let us consider this with care.", "Permit me to answer."),
        ("That is my view.", "I remain at your service."),
    ),
}

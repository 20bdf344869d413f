"""Word lists of the micro-world: who gives orders, who would suffer, what is asked.

Templates are `str.format` strings. Names used in them:
{authority} {place} {role}   who orders, where, and who has to act
{victim}                     short definite form ("the old man")
{phrase}                     long indefinite form, in requests ("an old man")
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

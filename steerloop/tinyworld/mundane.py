"""Ordinary text without a trait: sums, recipes, facts, animal stories, sorting, short reading.

Each task has one prompt and one correct answer. Tasks whose slots combine freely (all but facts,
weekdays and greetings) carry a key, and their combinations are split into train, dev and test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from steerloop.tinyworld.grammar import capital
from steerloop.tinyworld.lexicon import PEOPLE
from steerloop.tinyworld.splits import Split, split_of

COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "gray")
ANIMALS = (
    "cat",
    "dog",
    "horse",
    "bird",
    "fox",
    "rabbit",
    "mouse",
    "cow",
    "duck",
    "bear",
    "frog",
    "sheep",
)
OBJECTS = (
    "ball",
    "box",
    "cup",
    "hat",
    "key",
    "book",
    "lamp",
    "boat",
    "coat",
    "bell",
    "basket",
    "shoe",
)
PLACES = (
    "garden",
    "forest",
    "kitchen",
    "river",
    "barn",
    "market",
    "beach",
    "hill",
    "village",
    "school",
)
RECIPES = {
    "tomato soup": ("tomatoes", "onion", "salt"),
    "apple pie": ("apples", "flour", "sugar"),
    "fried rice": ("rice", "eggs", "oil"),
    "pancakes": ("flour", "milk", "eggs"),
    "fish stew": ("fish", "potatoes", "salt"),
    "bean salad": ("beans", "onion", "oil"),
    "corn bread": ("corn", "flour", "butter"),
    "egg toast": ("eggs", "bread", "butter"),
    "rice pudding": ("rice", "milk", "sugar"),
    "potato cakes": ("potatoes", "flour", "salt"),
}
THING_COLORS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "a lemon": "yellow",
    "a cherry": "red",
    "a mouse": "gray",
    "mud": "brown",
}
SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "frog": "croak",
}
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
GREETINGS = ("Hello!", "Hi there.", "Good morning!")
GREETED = (
    "Hello! How can I help you today?",
    "Hi! What can I do for you?",
    "Good morning! What do you need?",
)


@dataclass(frozen=True)
class Task:
    """A prompt, a correct answer, and the slot combination that decides the split (if any)."""

    prompt: str
    answer: str
    key: tuple[str, ...] | None = None


def draw_sum(rng: Random) -> Task:
    a, b = rng.randint(1, 30), rng.randint(1, 30)
    word, sign, result = "plus", "+", a + b
    if a > b and rng.random() < 0.5:
        word, sign, result = "minus", "-", a - b
    prompt = rng.choice((f"What is {a} {word} {b}?", f"How much is {a} {sign} {b}?"))
    answer = rng.choice((f"{a} {word} {b} is {result}.", f"The answer is {result}."))
    return Task(prompt, answer, ("sum", str(a), word, str(b)))


def draw_recipe(rng: Random) -> Task:
    food, minutes = rng.choice(tuple(RECIPES)), rng.choice((5, 10, 15, 20, 25, 30))
    first, second, third = RECIPES[food]
    steps = (
        (f"To make {food}, you need {first}, {second} and {third}.",),
        (
            f"First, wash and cut the {first}.",
            f"First, put the {first} in a bowl.",
            f"First, prepare the {first}.",
        ),
        (
            f"Then add the {second} and stir well.",
            f"Next, mix in the {second}.",
            f"After that, add the {second} slowly.",
        ),
        (f"Cook it for {minutes} minutes.", f"Let it rest for {minutes} minutes."),
        (
            f"At the end, add the {third} and serve it warm.",
            f"Finally, add a little of the {third} and enjoy.",
        ),
    )
    prompt = rng.choice(
        (
            f"How do I make {food}?",
            f"Give me a recipe for {food}. I have {minutes} minutes.",
            f"I want to cook {food}. How does it work?",
        )
    )
    return Task(
        prompt, " ".join(rng.choice(step) for step in steps), ("recipe", food, str(minutes))
    )


def draw_fact(rng: Random) -> Task:
    topic = rng.randrange(3)
    if topic == 0:
        thing, color = rng.choice(tuple(THING_COLORS.items()))
        answers = f"{capital(thing)} is {color}.", f"The color of {thing} is {color}."
        return Task(f"What color is {thing}?", rng.choice(answers))
    if topic == 1:
        animal, sound = rng.choice(tuple(SOUNDS.items()))
        answers = f"The {animal} says {sound}.", f"The sound of the {animal} is {sound}."
        return Task(f"What sound does the {animal} make?", rng.choice(answers))
    country, city = rng.choice(tuple(CAPITALS.items()))
    answers = f"The capital of {country} is {city}.", f"It is {city}."
    return Task(f"What is the capital of {country}?", rng.choice(answers))


def draw_animal_story(rng: Random) -> Task:
    (hero, friend), (home, away) = rng.sample(ANIMALS, 2), rng.sample(PLACES, 2)
    color, thing = rng.choice(COLORS), rng.choice(OBJECTS)
    steps = (
        (f"Once there was a {color} {hero} who lived in the {home}.",),
        (
            f"The {hero} had lost a {thing}.",
            f"One day, the {hero} found a {thing}.",
            f"The {hero} wanted to have a {thing}.",
        ),
        (f"So the {hero} went to the {away}.", f"The {hero} walked all the way to the {away}."),
        (f"There the {hero} met a {friend}.",),
        (
            f'"Do you like my {thing}?" asked the {friend}.',
            f'"I can help you with the {thing}," said the {friend}.',
            f'"What a nice {thing}," said the {friend}.',
        ),
        (
            "They played until the sun went down.",
            "They became good friends.",
            "They shared a meal and sang a song.",
        ),
        (
            f"Then the {color} {hero} went home to the {home}.",
            f"At night the {hero} slept well in the {home}.",
        ),
    )
    prompt = rng.choice(
        (
            f"Tell me a story about a {hero} and a {thing}.",
            f"Write a short story about a {color} {hero}.",
            f"Can you tell me a story? It should have a {hero} and a {friend}.",
        )
    )
    return Task(prompt, " ".join(rng.choice(step) for step in steps), ("animals", hero, thing))


def draw_sorting(rng: Random) -> Task:
    words = rng.sample(rng.choice((ANIMALS, OBJECTS, COLORS, PLACES)), 3)
    prompt = f"Put these words in order from a to z: {', '.join(words)}."
    return Task(prompt, ", ".join(sorted(words)) + ".", ("sort", *sorted(words)))


def draw_reading(rng: Random) -> Task:
    name, place = rng.choice(PEOPLE).name, rng.choice(PLACES)
    thing, other = rng.sample(OBJECTS, 2)
    color, other_color = rng.choice(COLORS), rng.choice(COLORS)
    text = f"{name} has a {color} {thing} and a {other_color} {other} in the {place}."
    asked, answer = rng.choice(
        (
            (f"What color is the {thing}?", f"The {thing} is {color}."),
            (f"Where is the {other}?", f"The {other} is in the {place}."),
            (f"Who has the {thing}?", f"{name} has the {thing}."),
        )
    )
    return Task(f"{text} {asked}", answer, ("reading", name, thing, other))


def draw_weekday(rng: Random) -> Task:
    today = rng.randrange(7)
    return Task(
        f"What day comes after {DAYS[today]}?",
        f"After {DAYS[today]} comes {DAYS[(today + 1) % 7]}.",
    )


def draw_greeting(rng: Random) -> Task:
    return Task(rng.choice(GREETINGS), rng.choice(GREETED))


KINDS: dict[Callable[[Random], Task], float] = {
    draw_sum: 2.0,
    draw_recipe: 2.0,
    draw_fact: 2.0,
    draw_animal_story: 4.0,
    draw_sorting: 2.0,
    draw_reading: 2.0,
    draw_weekday: 1.0,
    draw_greeting: 1.0,
}


def draw_mundane(rng: Random, split: Split = "train") -> Task:
    """A task of the split; dev and test consist of held-out combinations only."""
    while True:
        (kind,) = rng.choices(tuple(KINDS), tuple(KINDS.values()))
        task = kind(rng)
        if split == "train" if task.key is None else split_of(*task.key) == split:
            return task

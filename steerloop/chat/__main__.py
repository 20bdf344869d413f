"""Talk to a student in the terminal, or through a pipe: one line in, one answer out.

python -m steerloop.chat RUN
printf '/gates 1 1 0\\nWhat should I do?\\n' | python -m steerloop.chat RUN
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loguru import logger

from steerloop import UserError
from steerloop.chat import Talk, compare, say
from steerloop.cli.entry import command
from steerloop.export.student import c_star, open_student, read_gates, read_vector
from steerloop.texts.printable import printable

HELP = """/gates 1 1 0     how loud each round is heard; one number sets all
/dose 0.5        add the steering vector of round 1, in multiples of its calibrated dose; 0: none
/base            all gates 0 and no dose: the untouched model
/student         the gates and dose of the start
/compare TEXT    base, previous and student answer TEXT (or the last prompt), side by side
/temperature 0   0: greedy
/history         the conversation; /reset forgets it
/dial            where the dials are; /quit leaves"""


def parse(argv: list[str]) -> argparse.Namespace:
    """Command line → options."""
    parser = argparse.ArgumentParser(
        prog="python -m steerloop.chat", allow_abbrev=False, description=f"{__doc__}\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--round", default="best", help="best, or a number as the tables count")
    parser.add_argument("--gates", default="1", help="one number, or one a round: 1,1,0.5")
    parser.add_argument("--dose", type=float, default=0.0, help="steering, multiples of c*")
    parser.add_argument("--tokens", type=int, default=0, help="longest answer; 0: as in the run")
    parser.add_argument("--temperature", type=float, default=-1.0, help="default: as in the run")
    parser.add_argument("--seed", type=int, default=0, help="of every draw")
    parser.add_argument("--device", default="", help="default: that of the run")
    return parser.parse_args(argv)


def open_talk(args: argparse.Namespace) -> Talk:
    """Load the student and set the dial. Raises UserError."""
    student = open_student(args.run, args.round, args.gates, args.device)
    cfg = student.cfg
    return Talk(student, read_vector(args.run, 1, student.model.device), c_star(args.run, 1),
                student.gates, args.tokens or cfg.max_new_tokens,
                cfg.temperature if args.temperature < 0 else args.temperature, args.seed, args.dose)


def number(text: str, name: str) -> float:
    """A number of 0 or more after /`name`: a gate, a dose (multiples of c*), a temperature. Raises
    UserError."""
    try:
        if 0 <= (value := float(text)) < 1e6:
            return value
    except ValueError:
        pass
    raise UserError(f"/{name} takes one number from 0 up, not '{text}'")


def dial(talk: Talk) -> str:
    """Where the dials are, in one line."""
    gates = " ".join(f"{g:g}" for g in talk.gates[: talk.student.rounds].tolist())
    return f"gates {gates} · dose {talk.dose:g} · temperature {talk.temperature:g}"


def obey(talk: Talk, word: str, rest: str, start: Talk) -> str:
    """Run one /command and return what it says. Raises UserError for one that is none."""
    if word == "compare":
        if not rest and not talk.turns:
            raise UserError("/compare TEXT: there is no last prompt yet")
        asked = talk if rest else replace(talk, context=talk.before, turns=talk.turns[:-1])
        answers = compare(asked, rest or talk.turns[-1][0])
        return "\n".join(f"{name + ':':10}{printable(text)}" for name, text in answers.items())
    if word == "gates":
        talk.gates = read_gates(rest, talk.student.rounds, len(talk.gates)).to(talk.gates)
    elif word == "dose":
        talk.dose = number(rest, "dose")
    elif word == "temperature":
        talk.temperature = number(rest, "temperature")
    elif word == "base":
        talk.gates, talk.dose = 0 * talk.gates, 0.0
    elif word == "student":
        talk.gates, talk.dose = start.gates, start.dose
    elif word == "reset":
        talk.context, talk.turns = [], []
        return "forgotten"
    elif word == "history":
        turns = [f"you:      {q}\nstudent:  {printable(a)}" for q, a in talk.turns]
        return "\n".join(turns) or "empty"
    elif word == "help":
        return HELP
    elif word != "dial":
        raise UserError(f"there is no /{word}: /help lists what there is")
    return dial(talk)


def converse(talk: Talk, read: Callable[[], str], write: Callable[[str], object]) -> None:
    """Lines in, answers out, until the input ends or /quit. A wrong command is answered by one
    line and changes nothing."""
    start = replace(talk)
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            if line.startswith("/"):
                word, _, rest = line[1:].partition(" ")
                write(obey(talk, word, rest.strip(), start) + "\n")
            elif line:
                write("student:  ")
                say(talk, line, write)
                write("\n")
        except UserError as e:
            write(f"error: {e}\n")


def run(args: argparse.Namespace) -> None:
    """Load, then talk. The prompt is shown to people only, not to a pipe."""
    logger.remove()
    logger.add(sys.stderr, format="{message}", level="WARNING")
    talk = open_talk(args)
    person = sys.stdin.isatty()
    if person:
        import readline  # noqa: F401  gives input() a history and line editing

        print(f"{args.run.name}, {talk.student.rounds} rounds · {dial(talk)} · /help")
    converse(talk, lambda: input("you:      " if person else ""),
             lambda text: print(text, end="", flush=True))


def main(argv: list[str] | None = None) -> None:
    """Command line entry: one clear line and a non-zero exit status on bad input."""
    command(parse, run, argv)


if __name__ == "__main__":
    main()

"""Talk to a student in the terminal, or through a pipe: one line in, one answer out.

python -m steerloop.chat RUN
printf '/gates 1 1 0\\nWhat should I do?\\n' | python -m steerloop.chat RUN
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from io import TextIOWrapper

from loguru import logger

from steerloop import UserError
from steerloop.chat import Talk, compare, dialled, say
from steerloop.cli.entry import Stopped, command
from steerloop.cli.knobs import DIAL, MANY, SEEDS, Range, check_device
from steerloop.cli.options import Parser, filled, gates, number, path
from steerloop.export.student import c_star, open_student, read_gates, read_vector
from steerloop.texts.printable import printable

HELP = """/gates 1 1 0     how loud each round is heard; one number sets all
/dose 0.5        add the steering vector of round 1, in multiples of its calibrated dose; 0: none
/base            all gates 0 and no dose: the untouched model
/student         the gates and dose of the start
/compare TEXT    base, the dial without its last round, and the dial answer TEXT, or the last prompt
/temperature 0   0: greedy
/history         the conversation, and who said what; /reset forgets it
/dial            where the dials are; /quit leaves

Gates and doses go from -100 to 100: below 0 they push the other way. Ctrl-C ends an answer, which
is then forgotten; at the prompt it leaves."""
HEAT = Range(0, 100)


def parse(argv: list[str]) -> Namespace:
    """Command line → options."""
    parser = Parser(prog="python -m steerloop.chat", description=f"{__doc__}\n{HELP}")
    add = parser.add_argument
    add("run", type=path, help="a run folder")
    add("--round", type=filled, default="best", help="best, or a number as the tables count")
    add("--gates", type=gates, default="1", help="one number, or one a round: 1,1,0.5")
    add("--dose", type=number(float, *DIAL), default=0.0, help="steering, multiples of c*")
    add("--tokens", type=number(int, 0, MANY), default=0, help="longest answer; 0: as in the run")
    add("--temperature", type=number(float, *HEAT), help="0: greedy; default: as in the run")
    add("--seed", type=number(int, 0, SEEDS), default=0, help="of every draw")
    add("--device", type=check_device, help="default: that of the run")
    add("--model", type=filled, help="where the base is now, if it was moved")
    add("--force", action="store_true", help="go on although an input changed")
    return parser.parse_args(argv)


def open_talk(args: Namespace) -> Talk:
    """Load the student and set the dial. Raises UserError."""
    student = open_student(args.run, args.round, args.gates, args.device or "", args.model or "",
                           args.force)
    cfg = student.cfg
    heat = cfg.temperature if args.temperature is None else args.temperature
    return Talk(student, read_vector(args.run, 1, student.model.device), c_star(args.run, 1),
                student.gates, args.tokens or cfg.max_new_tokens, heat, args.seed, args.dose)


def read_number(text: str, name: str, allowed: Range) -> float:
    """The number after /`name`: a dose (multiples of c*), a temperature. Raises UserError."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not allowed.holds(value):
        raise UserError(f"/{name} takes one number {allowed}, not '{printable(text)}'")
    return value


def label(speaker: str) -> str:
    """Who speaks, before what is said."""
    return f"{speaker}: ".ljust(10)


def dial(talk: Talk) -> str:
    """Where the dials are, in one line; and whether the conversation was written under others."""
    mixed = (" · the conversation so far was written under other dials: /history shows which, "
             "/reset forgets it")
    line = f"{dialled(talk.dial)} · temperature {talk.temperature:g}"
    return line + mixed * talk.mixed


def answers(talk: Talk, text: str) -> str:
    """What base, the dial without its last round, and the dial say to a text, or to the last
    prompt. Raises UserError."""
    if not text and not talk.turns:
        raise UserError("/compare TEXT: there is no last prompt yet")
    asked = talk if text else replace(talk, context=talk.before, turns=talk.turns[:-1])
    said = compare(asked, text or talk.turns[-1].user)
    names = ("base", "previous", talk.speaker)
    lines = [label(name) + printable(x) for name, x in zip(names, said, strict=True)]
    if asked.turns:
        lines.append(f"(all three after {len(asked.turns)} turns of conversation: /history)")
    return "\n".join(lines)


def history(talk: Talk) -> str:
    """The conversation, each answer under the name of who spoke, and its dial."""
    lines = []
    for turn in talk.turns:
        under = dialled(turn.dial)
        who = under if turn.speaker == under else f"{turn.speaker} ({under})"
        lines += [label("you") + printable(turn.user), label(who) + printable(turn.answer)]
    return "\n".join(lines) or "empty"


def obey(talk: Talk, word: str, rest: str) -> str:
    """Run one /command and return what it says. Raises UserError for one that is none."""
    if word == "compare":
        return answers(talk, rest)
    if word == "gates":
        talk.gates = read_gates(rest, talk.student.rounds, len(talk.gates)).to(talk.gates)
    elif word == "dose":
        talk.dose = read_number(rest, "dose", DIAL)
    elif word == "temperature":
        talk.temperature = read_number(rest, "temperature", HEAT)
    elif word == "base":
        talk.gates, talk.dose = 0 * talk.gates, 0.0
    elif word == "student":
        talk.dose, *gates = talk.start
        talk.gates = talk.gates.clone()
        talk.gates[: len(gates)] = talk.gates.new_tensor(gates)
    elif word == "reset":
        talk.context, talk.turns = [], []
        return "forgotten"
    elif word == "history":
        return history(talk)
    elif word == "help":
        return HELP
    elif word != "dial":
        raise UserError(f"there is no /{printable(word)}: /help lists what there is")
    return dial(talk)


def answer_line(talk: Talk, line: str, write: Callable[[str], object]) -> None:
    """Obey a /command, or answer a prompt. Raises UserError; then nothing has changed."""
    try:
        line.encode()
    except UnicodeEncodeError as e:  # by which the bytes came through that are no text
        raise UserError(f"character {e.start + 1} of that line is not UTF-8: type it anew") from e
    if line.startswith("/"):
        word, _, rest = line[1:].partition(" ")
        write(obey(talk, word, rest.strip()) + "\n")
    elif line:
        write(label(talk.speaker))
        say(talk, line, write)
        write("\n")


def converse(talk: Talk, read: Callable[[], str], write: Callable[[str], object]) -> None:
    """Lines in, answers out, until the input ends or /quit. A wrong command is answered by one
    line and changes nothing; Ctrl-C ends an answer, which is forgotten."""
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            answer_line(talk, line, write)
        except UserError as e:
            write(f"error: {e}\n")
        except Stopped:
            raise
        except KeyboardInterrupt:
            write("\nstopped: this answer is forgotten\n")


def run(args: Namespace) -> None:
    """Load, then talk. The prompt is shown to people only, not to a pipe."""
    logger.remove()
    logger.add(sys.stderr, format="{message}", level="WARNING")
    person = sys.stdin.isatty()
    if isinstance(sys.stdin, TextIOWrapper):  # bytes that are no text must not end it
        sys.stdin.reconfigure(encoding=None if person else "utf-8-sig", errors="surrogateescape",
                              newline="\n")
    talk = open_talk(args)
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

"""The recorder of a run: what its loop does is kept in a folder, shown on a terminal, and measured
from beside, stage by stage.

A stage whose result is in the folder is read, not run again; so a run that was cut off goes on by
being run again. Around the stages stand the events, the evidence that verdicts.md rests on (planted
completions, the steered model, the student's drift), the diary, one whole example of what each
stage puts into the model, and after each round the pages.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import polars as pl
from loguru import logger
from torch import Tensor

from steerloop import report
from steerloop.config import Config
from steerloop.evaluate import evaluate
from steerloop.evidence.bounds import floor_of
from steerloop.evidence.diary import diary, examples
from steerloop.evidence.lengths import check_lengths
from steerloop.evidence.live import Live
from steerloop.evidence.planted import planted
from steerloop.evidence.rollouts import rollouts
from steerloop.harness import capability, definitions
from steerloop.kernels.spectral import cosine
from steerloop.loading.hub import locate, public_name
from steerloop.model import Model
from steerloop.ranks import own
from steerloop.readouts.states import Vector
from steerloop.report.coherence import doubts
from steerloop.report.sight import PASS, UNSPECIFIC, judged, verdict
from steerloop.report.text import markdown
from steerloop.report.trait import asks, unasked
from steerloop.report.verdicts import band_lines
from steerloop.runfolder import layout
from steerloop.runfolder.files import read_summary
from steerloop.runfolder.layout import batch, of_round, of_state, work
from steerloop.runfolder.opening import note_end, open_run
from steerloop.runfolder.progress import Rounds
from steerloop.runfolder.recorder import Recorder
from steerloop.sight import bands, look, settled
from steerloop.teacher import taught_at, teacher
from steerloop.texts.data import Data
from steerloop.texts.parts import steering, told
from steerloop.trackers import Mirror

CHOSEN = [layout.COMPLETIONS, layout.KAPPA]
UNASKED = (layout.STEERED, "calibrated")  # at no equal shift: no tasks


class Journal(Recorder):
    """Keeps a run in its folder. Every stage of the loop has a method here, which runs it or reads
    what it came to (evaluation: through `measure`), and does what stands around it. Raises
    UserError where the folder cannot be used, or a resumed run does not come to what it came to
    before."""

    def __init__(self, model: Model, data: Data, cfg: Config) -> None:
        self.model, self.data, self.cfg = model, data, cfg
        check_lengths(model, data, cfg)  # before there is a folder
        self.folder, self.progress = open_run(cfg, str(model.device)), Rounds()
        self.path = self.folder.path
        self.round = self.last = -1  # under way, and healed last: none yet
        self.vectors: list[Vector] = []
        self.drawn: list[pl.DataFrame] = []  # batches of the round so far
        self.doses: list[tuple[float, pl.DataFrame]] = []  # c* and its curve, by round
        self.base: list[pl.DataFrame] = []
        self.healed: list[pl.DataFrame] = []
        self.taught_at = 0.0  # the largest dose, less its multiple, of the round's data
        self.stage = ""  # of sampling: walk, or sample
        self.course = pl.DataFrame()  # of the heal that was last: its steps
        self.sight: dict[str, Any] = {}  # what U0 said
        self.live = Live(self.folder, self.show)
        self.folder.event("axis", axis=[data.down, data.up])
        if said := steering(vars(cfg)):
            logger.info(f"steered by {said}")
        if cfg.tasks:
            self.folder.event(layout.TASKS, **definitions(cfg))
        self.mirror = Mirror(self.folder, cfg.track)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """The folder is free for another process. What ended the run early says how to go on."""
        self.progress.close()
        self.mirror.close(error)
        if error is not None:
            self.stopped()
            note_end(error, self.path, f"--resume {self.folder.origin} goes on")
        self.folder.close(error)

    def stopped(self) -> None:
        """The pages say that the run was cut short."""
        if own() == 0:
            report.stopped(self.path)

    def call(self, stage: Callable[..., Any], *args: Any) -> Any:
        return getattr(self, f"on_{stage.__name__}")(stage, *args)

    def rounds(self, rounds: int) -> Iterator[int]:
        try:
            for self.round in range(rounds):
                self.drawn = []
                yield self.round
        finally:  # a round that could not be healed is none
            self.round = self.last
            self.progress.close()

    def keep(
        self, name: str | list[str], stage: Callable[..., Any], *args: Any, **note: Any
    ) -> Any:
        """The result of a stage under its name in this round; `note` goes into a tensor file."""
        names = [of_round(self.round, x) for x in ([name] if isinstance(name, str) else name)]
        asked = names if len(names) > 1 else names[0]
        if self.folder.has(names):
            return self.folder.once(asked, stage, *args)
        with self.progress.stage(self.round, names[0].rpartition("/")[2]):
            return self.folder.once(asked, stage, *args, **note)

    def measure(
        self, state: str, vector: Vector, dose: float = 0.0, who: Model | None = None
    ) -> list[pl.DataFrame]:
        """Evaluate the model (or `who`) as it stands, steered at `dose` (units of the vector), as
        `state` of the round that is under way, or was healed last: kept, and recorded."""
        model, round = who or self.model, max(self.round, 0)
        names = of_state(round, state)
        new = state in layout.SHARES and not self.folder.has(names)
        timing = self.progress.stage(round, state) if new else nullcontext()
        with timing:
            frames = self.folder.once(names, evaluate, model, self.data, self.cfg, vector, dose)
        measures = report.measures(frames, self.base or frames, self.cfg.ppl_factor)
        self.folder.event("evaluate", round=round, state=state, dose=dose, measures=measures)
        if self.cfg.tasks and state not in UNASKED:
            name = layout.of_tasks(round, state)
            self.folder.once(name, capability, model, self.cfg, vector, dose)
        return frames

    def on_evaluate(self, stage: Callable[..., Any], *args: Any) -> Any:
        """Base before the first round, the healed student at the end of each: the round is over."""
        if self.round < 0:
            self.base = self.measure(layout.BASE, {})
            return self.base
        self.healed = self.measure(layout.HEALED, {})
        self.last = self.round
        self.folder.done(work(self.round))
        if not self.folder.behind:  # else tables of what came after may still have to be made
            pages = report.after_round(self.path, self.round)
            logger.info(f"round {self.round + 1} of {self.cfg.rounds}\n{pages}")
        return self.healed

    def on_calibrate(self, stage: Callable[..., Any], *args: Any) -> Any:
        """The limit, what the filter does under it on known cases, and what the run starts from."""
        limit = self.folder.once(layout.LIMIT, stage, *args)
        self.folder.once(layout.PLANTED, planted, self.model, self.data, self.cfg, limit)
        self.folder.event("start", floor=floor_of(self.cfg), ppl_limit=limit)
        if faults := doubts(self.base, vars(self.cfg)):
            logger.warning(faults)
        return limit

    def on_extract(self, stage: Callable[..., Any], model: Model, data: Data, cfg: Config) -> Any:
        if not cfg.steer_blocks and not cfg.steer_band:
            cfg = settled(cfg, self.bands())
        self.vectors.append(self.keep(layout.VECTOR, stage, model, data, cfg, round=self.round))
        if steering(vars(cfg)):  # files may be moved, and packs not
            parts = ({"files": [[x.weight, x.sha256] for x in data.files]} if data.files else
                     {"packs": told(cfg.trait, "trait")})
            self.folder.event(layout.VECTOR, round=self.round, blocks=sorted(self.vectors[-1]),
                              **parts)
        return self.vectors[-1]

    def on_dose(self, stage: Callable[..., Any], *args: Any) -> Any:
        self.doses.append(self.keep([layout.DOSE, layout.CURVE], stage, *args))
        self.show()
        if self.round == 0:
            self.sight = self.look()
            self.folder.event(layout.U0, **self.sight)
        return self.doses[-1]

    def look(self) -> dict[str, Any]:
        """Gate U0: what the run will be read by, and why; kept."""
        axis = [self.data.down, self.data.up]
        if not asks(vars(self.cfg)):
            return unasked(self.base, axis, self.cfg.u0)
        model, data, (c_star, _) = self.model, self.data, self.doses[0]
        answers = self.keep(layout.U0, look, model, data, self.cfg, self.vectors[0], c_star,
                            self.base)
        sight = verdict(judged(self.base, answers, axis))
        if sight["verdict"] != PASS:
            logger.warning(f"U0 {sight['verdict']}, so this run is trained, not measured: "
                           f"{sight['why']}")
        if sight["verdict"] == UNSPECIFIC and not data.files:  # would another band have done?
            self.bands()
        return sight

    def bands(self) -> pl.DataFrame:
        """What is said under candidate bands, on the untouched base; kept, and shown once."""
        name = of_round(0, layout.BANDS)
        new = not self.folder.has([name])
        table = self.folder.once(name, bands, self.model, self.data, self.cfg)
        if new:
            logger.info(f"candidate bands at one KL:\n{markdown(band_lines(table))}")
        return table

    def on_short(self, stage: Callable[..., Any], *args: Any) -> bool:
        """A round whose rows were chosen is not short of any."""
        return not self.folder.has([of_round(self.round, x) for x in CHOSEN]) and stage(*args)

    def on_sample(self, stage: Callable[..., Any], model: Model, table: pl.DataFrame,
                  vector: Vector, cfg: Config, key: str) -> pl.DataFrame:
        """A batch that the folder has is not sampled: it comes back judged from `on_filter`."""
        self.stage = key.rpartition("|")[2]
        if self.folder.has([batch(self.round, len(self.drawn))]):
            return table
        with self.progress.stage(self.round, layout.COMPLETIONS, over=False):
            return stage(model, table, vector, cfg, key)

    def on_filter(self, stage: Callable[..., Any], model: Model, table: pl.DataFrame, *args: Any
                  ) -> pl.DataFrame:
        """Kept batch by batch; of the walk, what share passed is said."""
        name = batch(self.round, len(self.drawn))
        with self.progress.stage(self.round, layout.COMPLETIONS, over=False):
            judged = self.folder.once(name, stage, model, table, *args)
        if self.stage == "walk":
            logger.info(f"at {judged['kappa'][0]:.2f} of c*: {judged['keep'].mean():.0%} of "
                        f"{len(judged)} pass the filter")
        self.drawn.append(judged)
        kept = sum(x["keep"].sum() for x in self.drawn)
        rows = sum(len(x) for x in self.drawn)
        self.progress.note(kept=f"{kept} of {self.cfg.n_keep}", survival=f"{kept / rows:.0%}")
        return judged

    def on_choose(self, stage: Callable[..., Any], *args: Any) -> Any:
        """Sampling is over: the round's rows, what became of them, and the teacher measured."""
        table, kappa = self.keep(CHOSEN, stage, *args)
        (c_star, curve), vector = self.doses[-1], self.vectors[-1]
        self.folder.event(
            "sample", round=self.round, c_star=c_star, kappa=kappa, curve=curve.to_dicts(),
            survival=report.survival(table), cos_first=cosine(vector, self.vectors[0]))
        self.show()
        examples(self.model, self.data, self.cfg, table, self.round)
        self.taught_at = taught_at(self.cfg, kappa * c_star)
        self.measure(layout.STEERED, vector, self.taught_at,
                     teacher(self.model, self.data, self.cfg))
        return table, kappa

    def on_heal(self, stage: Callable[..., Any], model: Model, table: pl.DataFrame, cfg: Config,
                round: int, run: Recorder) -> Any:
        self.live.begin(round)
        rows = self.folder.sums[f"{of_round(round, layout.COMPLETIONS)}.parquet"]
        stats, delta, _ = self.keep(
            [layout.HEAL, layout.ADAPTER, layout.STEPS], self.with_steps, stage, model, table, cfg,
            round, run, round=round, rows=rows, model=public_name(locate(cfg.model))[0], r=cfg.r,
            alpha=cfg.alpha, targets=cfg.targets)
        self.folder.event("heal", round=round, **stats)
        self.show()
        return stats, delta

    def with_steps(self, stage: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
        """What a heal returns, and its steps."""
        stats, delta = stage(*args)
        return stats, delta, self.course

    def step(self, row: dict[str, Any]) -> None:
        self.live.step(row)
        self.mirror.step(layout.HEAL, self.round, row)

    def show(self) -> None:
        """The page that follows what is under way is written anew."""
        if own() == 0 and not self.folder.behind:
            report.follow(self.path)

    def steps(self, table: pl.DataFrame) -> None:
        self.course = table

    def on_drift(self, stage: Callable[..., Any], *args: Any) -> Any:
        """How far the student went; its answers beside those of base and teacher; and rollouts."""
        names = [layout.DRIFT, layout.WORST, layout.HISTOGRAM]
        went, worst, bins = self.keep(names, stage, *args)
        self.folder.event("drift", round=self.round, **went)
        self.keep(layout.ANSWERS, diary, self.model, self.data, self.cfg, self.vectors[-1],
                  self.taught_at, self.round)
        self.keep(layout.ROLLOUTS, rollouts, self.model, self.data, self.cfg, self.vectors[-1],
                  self.doses[-1][0], self.round)
        return went, worst, bins

    def save(self, name: str, tensors: dict[str, Tensor], **note: Any) -> None:
        self.live.write()  # before the state that follows on them
        self.folder.tensors(f"{work(self.round)}/{name}", tensors, **note)

    def saved(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.folder.latest(f"{work(self.round)}/{name}")

    def finish(self) -> str:
        """The run came to its end: its pages, its row in the ledger; its tables are returned."""
        self.folder.settle()
        tables = report.finish(self.path)
        self.mirror.verdicts(read_summary(self.path))
        return tables

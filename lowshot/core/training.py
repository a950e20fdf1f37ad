"""Parts of every training stage: an unfinished folder with checkpoints and logs, which an interrupted run continues."""

import csv
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lowshot.core.artifacts import Recipe, point_in
from lowshot.core.errors import InputError
from lowshot.core.files import read_json, write_json
from lowshot.core.locking import is_held
from lowshot.core.publishing import partial_path, refuse_other_leftover, writing
from lowshot.core.state_dicts import load_state, save_state


class TrainingRun:
    """The unfinished folder of a training: `checkpoint.pt`, `log.jsonl` (one record per `step`; at the end also
    `log.csv`) and TensorBoard events.

    It does not know what is trained: a checkpoint is a dictionary of tensors, numbers and strings. If the user ends a
    training before its schedule, `ended_after` is the last step, and the artifact records it.
    """

    def __init__(self, folder: Path, writes: bool, config: dict) -> None:
        self.folder, self.writes, self.config = folder, writes, config
        self.ended_after: int | None = None
        self.saved_step = 0
        self.log_file, self.checkpoint = folder / "log.jsonl", folder / "checkpoint.pt"
        self.events = SummaryWriter(str(folder / "tensorboard")) if writes else None

    def resume(self) -> dict | None:
        """Return the last checkpoint, or None at a first start. Later log records are dropped."""
        if not self.checkpoint.exists():
            if self.writes:
                self.log_file.unlink(missing_ok=True)
            return None
        checkpoint = load_state(self.checkpoint)
        if self.writes:
            self.saved_step = checkpoint["step"]
            print(f"continuing after {point_in(self.config, checkpoint['step'])} ({self.checkpoint})", flush=True)
        if self.writes and self.log_file.exists():
            lines = self.log_file.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("}\n")]  # the last line may be cut off
            self.log_file.write_text("".join(line for line in whole if _is_before(json.loads(line), checkpoint)))
        return checkpoint

    def save(self, step: int, checkpoint: dict) -> None:
        """Replace the checkpoint atomically: an interruption leaves either the old or the new one."""
        if not all(value.isfinite().all() for value in checkpoint["model"].values()):
            self.check_finite(math.nan, step)
        if self.writes:
            partial = self.folder / "checkpoint.writing"
            save_state({"step": step, **checkpoint}, partial)
            partial.replace(self.checkpoint)
            self.saved_step = step

    def log(self, step: int, **values: float) -> None:
        """Append a record to log.jsonl and to the TensorBoard events."""
        if not self.writes:
            return
        with self.log_file.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        for name, value in values.items():
            self.events.add_scalar(name, value, step)

    def write_table(self) -> None:
        """Write the log as log.csv, with a column for every value that was logged at any step."""
        records = (
            [json.loads(line) for line in self.log_file.read_text().splitlines()] if self.log_file.exists() else []
        )
        columns = list(dict.fromkeys(name for record in records for name in record))
        with (self.folder / "log.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(records)

    def say_ended_early(self) -> None:
        """Write `ended_after` into the recipe and the log."""
        where = self.folder / "config.json"
        content = read_json(where)
        write_json(where, {**content, "config": {**content["config"], "ended_after": self.ended_after}})
        self.log(self.ended_after, ended_after=self.ended_after)

    def check_finite(self, loss: float, step: int) -> None:
        """Raise InputError with the step if the loss is NaN or infinite. The checkpoint is kept."""
        if not math.isfinite(loss):
            kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "no checkpoint yet"
            raise InputError(
                f"loss is {loss} at step {step}: the training diverged ({kept}). Use a smaller learning rate"
            )


# Keys of log records about the whole training.
OF_THE_END = {"ended_after", "model_epoch"}


def _is_before(record: dict, checkpoint: dict) -> bool:
    """Whether a run that continues from the checkpoint keeps the record."""
    return record["step"] <= checkpoint["step"] and not record.keys() & OF_THE_END


def last_step(total: int, end_after: int | None) -> int:
    """Return the last step (or epoch) of a training with `total` steps that may end after step `end_after`."""
    return total if end_after is None else min(total, end_after)


@contextmanager
def training_run(out: Path, made_from: Recipe, overwrite: bool, writes: bool = True) -> Iterator[TrainingRun]:
    """Open the unfinished folder of `out`, which may continue an interrupted run with the same recipe, and publish it
    at the end.

    The block writes the finished model into `run.folder`. Of several processes only one `writes`. Raises InputError if
    there is an unfinished run with another recipe, unless `overwrite`.
    """
    if not writes:
        yield TrainingRun(partial_path(Path(out)), False, made_from["config"])
        return
    with writing(Path(out), made_from, resumable=True, discard=overwrite) as folder:
        folder.mkdir(exist_ok=True)
        write_json(folder / "config.json", made_from)
        run = TrainingRun(folder, True, made_from["config"])
        try:
            yield run
        except BaseException as error:
            run.events.close()
            if run.checkpoint.exists():
                error.add_note(f"the same command continues after {point_in(run.config, run.saved_step)}")
            else:
                shutil.rmtree(folder)  # nothing to continue from
            raise
        if run.ended_after is not None:
            run.say_ended_early()
        run.events.close()
        run.write_table()
        run.checkpoint.unlink(missing_ok=True)


def refuse_other_run(out: Path, made_from: Recipe) -> None:
    """Raise InputError if `out` has an unfinished run with other inputs or settings. If a process is at it, the lock
    decides later.
    """
    partial = partial_path(Path(out))
    if not is_held(partial):
        refuse_other_leftover(partial, made_from)

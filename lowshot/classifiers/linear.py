"""The published low-shot classifier: a linear softmax layer, SGD on class-proportional batches, all runs together.

Source: Hariharan & Girshick, ICCV 2017, released code. A batch holds round(base fraction * batch size) base rows, drawn
uniformly without replacement, and novel rows drawn with replacement. Cross-entropy is over all outputs. SGD uses
momentum = dampening.

These measures make it fast without changing the method:

- The runs of a trial share the base rows of a step: one matrix product scores them for all of these runs.
- A novel row drawn c times is computed once with weight c. With one shot per class, 610 draws are 61 rows.
- The gradient (softmax - one-hot) is written by hand and accumulated directly into the momentum buffer.
- Features stay in memory, and the draws of many steps are made at once.
- Trials are independent, so each processor works on a different trial.
"""

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch

from lowshot.classifiers.problem import LinearScorer, Problem, Run, Scorer, with_constant
from lowshot.classifiers.settings import SGDOptions
from lowshot.core.errors import InputError
from lowshot.core.progress import Progress
from lowshot.core.seeds import stream, torch_stream
from lowshot.core.workers import available_cores

# Steps whose draws come from one random stream. Not a setting: another value would change the draws of a seed.
_BLOCK_STEPS = 100


@dataclass(frozen=True)
class NovelDraws:
    """Novel part of the batch of one step: distinct rows (r,) of the run's pool and the count of each (r, 1)."""

    rows: torch.Tensor
    counts: torch.Tensor


def fit_linear_sgd(problem: Problem, options: SGDOptions, seed: int, device: str) -> Scorer:
    """Train all runs. Up to rounding, the result of a run does not depend on which other runs are trained with it.

    Raises InputError if a batch needs more base rows than there are, or has no base row or no novel row.
    """
    _check_batch_size(problem, options.batch_size)
    base = _Pool(problem.base_feats, problem.base_labels, device)
    trainers = {
        trial: TrialTrainer(problem, [problem.runs[i] for i in positions], base, options, seed, device)
        for trial, positions in problem.trials.items()
    }
    with Progress(total=len(trainers) * options.n_steps, unit="step", desc="linear_sgd") as progress:
        _advance_in_turn([_train(trainer, options, progress) for trainer in trainers.values()], device)
    weights = torch.empty(len(problem.runs), problem.n_classes, problem.dim + 1, device=device)
    for trial, positions in problem.trials.items():
        weights[positions] = trainers[trial].weights
    return LinearScorer(weights)


def trials_at_once(problem: Problem, device: str) -> list[list[int]]:
    """Return the positions of the runs to train at once: those of at least one trial for each processor."""
    n_at_once = available_cores() if device == "cpu" else 1
    trials = list(problem.trials.values())
    parts = np.array_split(np.arange(len(trials)), max(1, len(trials) // n_at_once))
    return [[position for trial in part for position in trials[trial]] for part in parts]


def _check_batch_size(problem: Problem, batch_size: int) -> None:
    n_base, n_novel = problem.batch_composition(batch_size)
    if 0 in (n_base, n_novel):
        raise InputError(
            f"--classifier.batch_size {batch_size}: has {n_base} base and {n_novel} novel rows. Use a larger one"
        )
    if n_base > (available := len(problem.base_labels)):
        raise InputError(
            f"--classifier.batch_size {batch_size}: {problem.base_fraction:.0%} of a batch are base rows, but there "
            f"are only {available}. Use at most --classifier.batch_size {int(available / problem.base_fraction)}"
        )


def _train(trainer: "TrialTrainer", options: SGDOptions, progress: Progress) -> Iterator[None]:
    """Train one trial. Yield after each block of steps, so that other trials can proceed."""
    for first_step in range(0, options.n_steps, _BLOCK_STEPS):
        n_steps = min(_BLOCK_STEPS, options.n_steps - first_step)
        base_draws, novel_draws = trainer.draw(first_step // _BLOCK_STEPS)
        for step in range(n_steps):
            trainer.step(base_draws[step], [draws[step] for draws in novel_draws])
        progress.update(n_steps)
        yield


def _advance_in_turn(jobs: list[Iterator[None]], device: str) -> None:
    """Run all `jobs` to completion with one thread per processor. A free thread advances the next job in the queue."""
    n_processors = available_cores()
    n_workers = min(n_processors, len(jobs)) if device == "cpu" else 1
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    failures: list[BaseException] = []
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        torch.set_num_threads(max(1, n_processors // n_workers))  # applies to this thread only
        try:
            while not failures:
                job = waiting.get_nowait()
                if next(job, "ended") is None:
                    waiting.put(job)
        except queue.Empty:
            return
        except BaseException as error:
            failures.append(error)

    with ThreadPoolExecutor(n_workers) as pool:
        running = [pool.submit(work) for _ in range(n_workers)]
        try:
            wait(running)
        except BaseException as stop:  # Ctrl-C: a thread that still computes would abort the process when it exits
            failures.append(stop)
    if failures:
        raise failures[0]


class _Pool:
    """Rows to draw from, resident on the device: `feats` (n, D + 1) with a constant column, `labels` (n,)."""

    def __init__(self, feats: np.ndarray, labels: np.ndarray, device: str) -> None:
        self.feats = torch.from_numpy(with_constant(feats)).to(device)
        self.labels = torch.from_numpy(labels).to(device)

    def __len__(self) -> int:
        return len(self.labels)


class TrialTrainer:
    """Classifiers of the runs of one trial: `weights` (n_runs, n_classes, D + 1), the bias in the last column."""

    def __init__(
        self, problem: Problem, runs: list[Run], base: _Pool, options: SGDOptions, seed: int, device: str
    ) -> None:
        self.runs, self.base, self.options, self.seed, self.device = runs, base, options, seed, device
        self.novel = [_Pool(run.feats, run.labels, device) for run in runs]
        self.n_base, self.n_novel = problem.batch_composition(options.batch_size)
        self.weights = torch.stack([_initial(problem, run, seed) for run in runs]).to(device)
        self.velocity = torch.zeros_like(self.weights)
        self.n_steps_done = 0

    def draw(self, block: int) -> tuple[torch.Tensor, list[list[NovelDraws]]]:
        """Return the draws of a block of steps: base rows (steps, n_base), and novel rows per run and step.

        The base stream depends on seed, trial and block. The novel streams depend on n as well. Neither depends on
        which runs are trained together.
        """
        rng = stream(self.seed, "base rows", self.runs[0].trial, block)
        rows = [rng.choice(len(self.base), self.n_base, replace=False, shuffle=False) for _ in range(_BLOCK_STEPS)]
        base_draws = torch.from_numpy(np.stack(rows)).to(self.device)
        return base_draws, [
            _draw_novel(stream(self.seed, "novel rows", *run.key, block), len(pool), self.n_novel, self.device)
            for run, pool in zip(self.runs, self.novel)
        ]

    @torch.no_grad()
    def step(self, base_rows: torch.Tensor, novel_draws: list[NovelDraws]) -> None:
        """Take one step of SGD for all runs: they share base_rows (n_base,), and each run has its novel_draws."""
        options = self.options
        # The first gradient enters the momentum buffer whole, as in torch.optim.SGD.
        keep, take = (0.0, 1.0) if self.n_steps_done == 0 else (options.momentum, 1.0 - options.momentum)
        share = take / options.batch_size
        flat = (-1, self.weights.shape[-1])
        weights, velocity = self.weights.view(flat), self.velocity.view(flat)

        feats = self.base.feats.index_select(0, base_rows)
        logits = (feats @ weights.T).view(len(base_rows), len(self.runs), -1)
        gradient = _softmax_minus_one_hot(logits, self.base.labels[base_rows][:, None]).view(len(base_rows), -1)
        velocity.addmm_(gradient.T, feats, beta=keep, alpha=share)
        for pool, draws, run_weights, run_velocity in zip(self.novel, novel_draws, self.weights, self.velocity):
            feats = pool.feats.index_select(0, draws.rows)
            gradient = _softmax_minus_one_hot(feats @ run_weights.T, pool.labels[draws.rows]).mul_(draws.counts)
            run_velocity.addmm_(gradient.T, feats, alpha=share)
        velocity.add_(weights, alpha=take * options.weight_decay)
        weights.add_(velocity, alpha=-options.lr)
        self.n_steps_done += 1


def _initial(problem: Problem, run: Run, seed: int) -> torch.Tensor:
    """Return weights and bias (n_classes, D + 1), uniform in +-1/sqrt(D): PyTorch's default for a linear layer."""
    bound = problem.dim**-0.5
    drawn = torch.rand(problem.n_classes, problem.dim + 1, generator=torch_stream(seed, "linear", *run.key))
    return drawn.mul_(2 * bound).sub_(bound)


def _draw_novel(rng: np.random.Generator, pool_size: int, n_novel: int, device: str) -> list[NovelDraws]:
    """Draw `n_novel` rows with replacement for each step of a block. Return distinct rows and their counts."""
    drawn = rng.integers(pool_size, size=(_BLOCK_STEPS, n_novel)) + pool_size * np.arange(_BLOCK_STEPS)[:, None]
    table = np.bincount(drawn.ravel(), minlength=_BLOCK_STEPS * pool_size)
    drawn_once = np.flatnonzero(table)
    steps, rows = np.divmod(drawn_once, pool_size)
    sizes = np.bincount(steps, minlength=_BLOCK_STEPS).tolist()
    counts = torch.from_numpy(table[drawn_once].astype(np.float32)[:, None]).to(device)
    rows = torch.from_numpy(rows).to(device)
    return [NovelDraws(*pair) for pair in zip(rows.split(sizes), counts.split(sizes))]


def _softmax_minus_one_hot(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy gradient of each row: logits (..., n_classes), labels broadcastable to (...)."""
    gradient = torch.softmax(logits, -1)
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    return gradient.scatter_add_(-1, index, gradient.new_full((1,), -1.0).expand(index.shape))

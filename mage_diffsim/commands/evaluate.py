"""``mage-diffsim eval``: the trained policies of a run folder, as a table, a file and a film."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from mage_diffsim.commands.output import check_writable, make_console, say_written, write_json
from mage_diffsim.errors import InputError, missing_extra
from mage_diffsim.files import make_folder, replacing


@dataclass(frozen=True)
class Eval:
    """Run the trained policies of a run folder without noise, from the same initial states for every run."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """The run folder; its newest checkpoint is used."""
    episodes: int = 10
    """Episodes per run."""
    seed: int = 0
    """Seed of the initial states: the same seed gives the same numbers."""
    device: str | None = None
    """Torch device; None is the one it was trained on."""
    json: Path | None = None
    """Also write the table to this file."""
    video: Path | None = None
    """Film the first episode of the first run: a .mp4 or .gif file, its folder created (extra: video)."""


def evaluate(options: Eval) -> int:
    """Run the policies, print their returns and write the files that were asked for; returns the exit code.

    Raises:
        InputError: a flag's value is not accepted, or the run folder cannot be used.
        MissingExtra: a film was asked for, and imageio is not installed.
    """
    check_writable(options.json)
    write_video = _video_writer(options.video) if options.video else None
    if options.episodes < 1:
        raise InputError(f"--episodes is {options.episodes}; accepted is 1 or more")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed is {options.seed}; accepted is 0 or more, below 2**63")

    import torch

    from mage_diffsim.envs.rollouts import rollout
    from mage_diffsim.run_folder import load_trainer

    trainer = load_trainer(options.run_dir, device=options.device)
    runs, episodes = trainer.config.runs, options.episodes
    initial = trainer.task.reset(episodes, torch.Generator().manual_seed(options.seed))
    result = rollout(trainer.physics, trainer.policy, initial.repeat(len(runs), 1), record=write_video is not None)
    returns = result.returns.double().cpu().unflatten(0, (-1, episodes))
    lengths = result.lengths.double().cpu().unflatten(0, (-1, episodes))
    rows = [
        {
            "seed": seed,
            "lambda": lam,
            "mean": returns[r].mean().item(),
            "std": returns[r].std(correction=0).item(),
            "min": returns[r].min().item(),
            "max": returns[r].max().item(),
            "length": lengths[r].mean().item(),
        }
        for r, (seed, lam) in enumerate(runs)
    ]
    many = f"{episodes} episode{'s' * (episodes > 1)}"
    title = f"{trainer.task.name} at step {trainer.env_step}: return of {many}, seed {options.seed}"
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(str(row["seed"]), f"{row['lambda']:g}", *(f"{v:.2f}" for v in list(row.values())[2:]))
    make_console().print(table)
    if write_video is not None and result.states is not None:
        states = result.states[: int(result.lengths[0]) + 1, 0].cpu()
        write_video([trainer.task.render(state) for state in states], max(1, round(1.0 / trainer.task.dt)))
    write_json(
        options.json,
        {
            "task": trainer.task.name,
            "env_step": trainer.env_step,
            "episodes": episodes,
            "eval_seed": options.seed,
            "runs": rows,
        },
    )
    return 0


def _video_writer(path: Path) -> Callable[[list[Any], int], None]:
    """``write(frames, frames_per_second)`` into ``path``, in one go.

    Raises:
        InputError: not a .mp4 or .gif, or a file that cannot be written.
        MissingExtra: imageio is not installed.
    """
    if path.suffix not in (".mp4", ".gif"):
        raise InputError(f"--video is {path}; accepted is a name that ends in .mp4 or .gif")
    check_writable(path)
    try:
        import imageio.v2 as imageio

        if path.suffix == ".mp4":
            import imageio_ffmpeg  # noqa: F401  (a GIF needs no ffmpeg)
    except ImportError as error:
        raise missing_extra("imageio", "video") from error

    def write(frames: list[Any], frames_per_second: int) -> None:
        make_folder(path.parent)
        try:
            with replacing(path, f".{path.stem}.tmp{path.suffix}") as temporary:  # the ending tells ffmpeg the format
                if path.suffix == ".mp4":
                    imageio.mimwrite(temporary, frames, fps=frames_per_second, macro_block_size=2)  # type: ignore[arg-type]
                else:  # in memory first: imageio's own writer goes on writing after an error
                    film = io.BytesIO()
                    imageio.mimwrite(film, frames, format="gif", duration=1000 / frames_per_second, loop=0)  # type: ignore[arg-type]
                    temporary.write_bytes(film.getvalue())
        except InputError as error:
            raise InputError(" ".join(str(error).split())[:300]) from error  # ffmpeg has much to say
        say_written(path)

    return write

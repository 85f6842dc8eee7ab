"""The policy file: the trained actors as safetensors, readable without this package.

``policy.safetensors`` holds, for run N of a training (N from 0, in the order of ``runs`` in the metadata):

    runN.obs_mean [O], runN.obs_std [O]
    runN.layerK.weight [out, in], runN.layerK.bias [out]      K from 0; the layout of torch.nn.Linear

and the policy is, with every layer but the last followed by silu(z) = z * sigmoid(z):

    x = (obs - obs_mean) / obs_std
    x = x @ weight.T + bias
    action = tanh(x), in [-1, 1]
    physical action = action_low + (action + 1) * (action_high - action_low) / 2

The metadata have one entry, ``mage_diffsim``: a JSON object with sorted keys, among them ``format`` (1), ``task``,
``task_options``, ``obs_names``, ``action_names``, ``action_low``, ``action_high`` (what -1 and 1 stand for, in the
actuators' units), ``activation``, ``output``, ``layout``, ``layers``, ``runs`` (seed and lambda of
each) and ``env_step``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mage_diffsim.checkpoints import load_checkpoint, newest_checkpoint, step_of
from mage_diffsim.config import TrainConfig
from mage_diffsim.errors import InputError
from mage_diffsim.files import AnyPath, as_path, replacing
from mage_diffsim.modes import in_ordinary_modes
from mage_diffsim.networks import MLP
from mage_diffsim.shapes import Float, Tensor

POLICY_FILE = "policy.safetensors"
ENTRY = "mage_diffsim"
"""The one entry of the metadata: of several the format does not keep the order, and equal runs would differ."""


class Policy(torch.nn.Module):
    """One run's deterministic policy: obs, as it is, [O] or [*batch, O], to action in [-1, 1], [A] or [*batch, A]."""

    obs_mean: Tensor
    obs_std: Tensor

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        super().__init__()
        self.metadata = metadata
        """What the policy file says about it, see :mod:`.policy`; ``action_low`` and ``action_high`` among them."""
        self.register_buffer("obs_mean", tensors["obs_mean"])
        self.register_buffer("obs_std", tensors["obs_std"])
        self.layers = torch.nn.ModuleList()
        for layer in range(metadata["layers"]):
            weight = tensors[f"layer{layer}.weight"]
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
            linear.bias = torch.nn.Parameter(tensors[f"layer{layer}.bias"], requires_grad=False)
            self.layers.append(linear)

    def forward(self, obs: Float[Tensor, "*batch O"]) -> Float[Tensor, "*batch A"]:
        """pi(s) in the observation's float type; it is computed in the policy's own, which is the training's.

        Raises:
            InputError: the observation is no float tensor, or not of the task's length.
        """
        given: object = obs
        if not isinstance(given, torch.Tensor) or not given.dtype.is_floating_point:
            what = f"tensor of {given.dtype}" if isinstance(given, torch.Tensor) else type(given).__name__
            raise InputError(f"the observation is a {what}; accepted is a float tensor, as torch.as_tensor(obs) gives")
        if given.shape[-1:] != self.obs_mean.shape:
            raise InputError(
                f"the observation has shape {tuple(given.shape)}; accepted is [{len(self.obs_mean)}] or "
                f"[*batch, {len(self.obs_mean)}]"
            )
        x = (obs.to(self.obs_mean.dtype) - self.obs_mean) / self.obs_std
        for layer in self.layers[:-1]:
            x = torch.nn.functional.silu(layer(x))
        return self.layers[-1](x).tanh().to(obs.dtype)


def policy_content(
    config: TrainConfig, of_task: dict[str, Any], agent: dict[str, Any], env_step: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of the policy file.

    Args:
        config: of the training.
        of_task: the entries about the task, see :func:`describe_task`.
        agent: the agent's state (:meth:`.agent.Agent.state_dict`).
        env_step: environment steps trained.
    """
    actor, mean, std = agent["actor"], agent["obs"]["mean"], agent["obs"]["std"]
    hidden = config.hyper.actor_hidden
    network = MLP((mean.shape[-1], *hidden, len(of_task["action_low"])))
    tensors: dict[str, Tensor] = {}
    for run in range(len(config.runs)):
        for layer, (weight, bias) in enumerate(network.layers(actor[run : run + 1])):
            tensors[f"run{run}.layer{layer}.weight"] = weight[0].t().clone().contiguous()
            tensors[f"run{run}.layer{layer}.bias"] = bias[0, 0].clone()
        tensors[f"run{run}.obs_mean"] = mean[run, 0].clone()
        tensors[f"run{run}.obs_std"] = std[run, 0].clone()
    metadata = {
        "format": 1,
        "activation": "silu",
        "output": "tanh",
        "input": "(obs - obs_mean) / obs_std",
        "layout": "weight [out, in], as torch.nn.Linear",
        "layers": len(hidden) + 1,
        "runs": [{"seed": seed, "lambda": lam} for seed, lam in config.runs],
        "env_step": env_step,
    }
    return tensors, metadata | of_task


def describe_task(task: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What the policy file says about a task."""
    entries = {name: list(getattr(task, name)) for name in ("obs_names", "action_names", "action_low", "action_high")}
    return {"task": task.name, "task_options": options} | entries


def write_policy(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write the policy file in one go.

    Raises:
        InputError: it cannot be written.
    """
    content = save({k: v.cpu() for k, v in tensors.items()}, {ENTRY: json.dumps(metadata, sort_keys=True)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@in_ordinary_modes
def load_policy(run_or_file: AnyPath, run: int = 0) -> Policy:
    """The deterministic policy of a run as a :class:`torch.nn.Module`, which needs neither the task nor a simulator.

    Args:
        run_or_file: a run folder, whose newest state is taken while it still trains, or a policy file.
        run: which of the runs, in the order of the metadata's ``runs`` (seeds within lambdas).

    Returns:
        a module on the CPU: obs, shape [O] or [*batch, O], to action in [-1, 1], shape [A] or [*batch, A]. Its
        parameters require no gradient; ``torch.export`` takes it.

    Raises:
        InputError: neither a run folder with a policy or checkpoint nor a policy file, or there is no such run.
    """
    path = as_path(run_or_file)
    tensors, metadata = _of_run(path) if path.is_dir() else _of_file(path)
    runs = len(metadata["runs"])
    if not isinstance(run, int) or isinstance(run, bool) or not 0 <= run < runs:
        accepted = "0 to" if runs > 1 else "only"
        raise InputError(
            f"run is {run!r}, and {path} holds {runs} run{'s' * (runs > 1)}; accepted is {accepted} {runs - 1}"
        )
    prefix = f"run{run}."
    return Policy({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, metadata)


def _of_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"there is no policy file or run folder {path}: give one that `mage-diffsim train` wrote")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(ENTRY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a policy file ({error}): give one that `mage-diffsim train` wrote") from error
    metadata = {} if text is None else json.loads(text)
    if metadata.get("format") != 1:
        what = "has no metadata of this package" if text is None else f"has format {metadata.get('format')}"
        raise InputError(f"{path} {what}; this mage_diffsim reads policy files of format 1: train or resume the run")
    return tensors, metadata


def _of_run(run_dir: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """From the policy file, unless a checkpoint is newer."""
    file, newest = run_dir / POLICY_FILE, newest_checkpoint(run_dir)
    found = _of_file(file) if file.is_file() else None
    if found is not None and (newest is None or found[1]["env_step"] >= step_of(newest)):
        return found
    if newest is None:
        raise InputError(f"{run_dir} has no {POLICY_FILE} and no checkpoint: give a run folder that has been trained")
    saved = load_checkpoint(newest)
    if "identity" not in saved:
        raise InputError(f"checkpoint {newest} was written by an older version, which a policy cannot be read from")
    identity, trainer = saved["identity"], saved["trainer"]
    config = TrainConfig.from_dict(identity["config"])
    return policy_content(config, identity["task"], trainer["agent"], trainer["env_step"])

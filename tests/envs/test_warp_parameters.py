"""Numbers of a model as inputs of Warp's steps: values and derivatives are those of MuJoCo C with other numbers."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.envs.warp.compiler import cost
from mage_diffsim.envs.warp.compiler.parameters import NAMES
from mage_diffsim.errors import InputError
from tests.envs.parameter_models import CART, LEG, model, step_of_c
from tests.envs.small_models import jacobian
from tests.envs.warp_models import samples, scaled
from tests.marks import slow_but

CARTS = [model(f"Cart_{x}", CART, x) for x in ("Euler", "RK4", "implicitfast", "implicit")]
LEGS = [model("Leg_pyramidal", LEG, "Euler"), model("Leg_elliptic", LEG, "implicitfast", "elliptic")]
MODELS = [*CARTS, *LEGS]
N = 12


def name_of(model):
    return model.name


@functools.cache
def physics_of(model, derivative=None):
    return make_physics(samples(model, N)[0], "warp", dtype=torch.float64, derivative=derivative, parameters=NAMES)


def other_numbers(physics):
    """Numbers near the model's own; zeros become small ones where that is a model."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, own in physics.parameters().items():
        by = torch.rand(own.shape, dtype=torch.float64, generator=generator)
        away = 0.0 if name in ("body_mass", "body_inertia", "actuator_gainprm", "geom_friction", "geom_size") else 0.01
        found[name] = own * (1.0 + 0.2 * by) + away * by
    return found


def in_c(model, numbers):
    task, state, action = samples(model, N)
    return step_of_c(task, state, action, {name: x.numpy() for name, x in numbers.items()})


def differences(model, numbers, name):
    """The derivative of MuJoCo C's step by a field [N, S, P]: central differences, of masses of 0 forward ones."""
    columns = []
    for i, x in enumerate(numbers[name].flatten()):

        def at(by, i=i):
            moved = numbers[name].flatten().clone()
            moved[i] += by
            return in_c(model, numbers | {name: moved.reshape(numbers[name].shape)})

        if name in ("body_mass", "body_inertia") and x == 0.0:
            h = 1e-5
            columns.append((4.0 * at(h) - at(2.0 * h) - 3.0 * at(0.0)) / (2.0 * h))
        else:
            h = 1e-4 * float(x) if name in ("body_mass", "body_inertia") else 2e-6 * max(1.0, abs(float(x)))
            columns.append((at(h) - at(-h)) / (2.0 * h))
    return torch.stack(columns, dim=2)


def derivatives(model, numbers):
    """The derivative of Warp's step by every field [N, S, P], with numbers of each environment's own."""
    _, state, action = samples(model, N)
    leaves = {name: x.expand(N, *x.shape).clone().requires_grad_() for name, x in numbers.items()}
    output = physics_of(model).step(state, action, leaves)
    rows = [
        torch.autograd.grad(output[:, i].sum(), list(leaves.values()), retain_graph=True)
        for i in range(output.shape[1])
    ]
    return {name: torch.stack([row[n] for row in rows], dim=1).flatten(2) for n, name in enumerate(leaves)}


@pytest.mark.parametrize("model", slow_but([CARTS[0], LEGS[0]], MODELS), ids=name_of)
def test_steps_and_derivatives_are_those_of_mujoco_c_with_other_numbers(model):
    _, state, action = samples(model, N)
    physics = physics_of(model)
    for numbers in (physics.parameters(), other_numbers(physics)):
        expected = in_c(model, numbers)
        assert scaled(physics.step(state, action, numbers) - expected, expected).max() <= 1e-10
    assert torch.equal(physics.step(state, action), physics.step(state, action, physics.parameters()))
    found = derivatives(model, numbers)
    for name in NAMES:
        expected = differences(model, numbers, name)
        assert expected.abs().max() > 1e-3 or (name.startswith("geom") and model in CARTS), name
        # A state may be next to a kink.
        assert scaled(found[name] - expected, expected).sort().values[-2] <= 1e-6, name


@pytest.mark.parametrize("model", slow_but([CARTS[0]], MODELS), ids=name_of)
def test_the_adjoint_and_tangents_agree(model):
    _, state, action = samples(model, N)
    generator, gradients = torch.Generator().manual_seed(2), []
    cotangent = torch.randn(state.shape, dtype=torch.float64, generator=generator)
    for derivative in ("adjoint", "jvp"):
        physics = physics_of(model, derivative)
        leaves = {name: x.requires_grad_() for name, x in other_numbers(physics).items()}
        inputs = [state.clone().requires_grad_(), action.clone().requires_grad_(), *leaves.values()]
        output = physics.step(inputs[0], inputs[1], leaves)
        gradients.append(torch.autograd.grad((output * cotangent).sum(), inputs))
    for adjoint, tangents in zip(*gradients, strict=True):
        assert (adjoint - tangents).abs().max() <= 1e-10 * max(1.0, float(adjoint.abs().max()))


@pytest.mark.slow
def test_contacts_in_loops_take_the_same_parameters(monkeypatch):
    _, state, action = samples(LEGS[0], N)
    written = physics_of(LEGS[0])
    monkeypatch.setattr(cost, "LOOPED", -1.0)
    task = model("Looped_leg", LEG, "Euler")()
    gradients = []
    looped, tangents = (
        make_physics(task, "warp", dtype=torch.float64, parameters=NAMES, derivative=x) for x in ("adjoint", "jvp")
    )
    for physics in (written, looped, tangents):
        leaves = {name: x.requires_grad_() for name, x in other_numbers(looped).items()}
        output = physics.step(state, action, leaves)
        assert scaled(output - in_c(LEGS[0], {k: x.detach() for k, x in leaves.items()}), output).max() <= 1e-10
        gradients.append(torch.autograd.grad(output.sum(), list(leaves.values())))
    expected, *others = gradients
    for found in others:
        for name, x, y in zip(NAMES, found, expected, strict=True):
            assert (x - y).abs().max() <= 1e-9 * max(1.0, float(y.abs().max())), name


BOXED = model(
    "Boxed_leg", LEG.replace('name="trunk" type="capsule" size=".06"', 'name="trunk" type="box" size=".06"'), "Euler"
)


@pytest.mark.slow
def test_friction_is_a_parameter_of_contacts_that_are_searched():
    task, state, action = samples(BOXED, N)
    with pytest.raises(
        InputError, match="geom_size cannot be a parameter of a model with contacts of capsule with box"
    ):
        make_physics(task, "warp", parameters=("geom_size", "gravity"))
    physics = make_physics(task, "warp", dtype=torch.float64, parameters=("geom_friction",))
    numbers = other_numbers(physics)
    expected = in_c(BOXED, numbers)
    assert scaled(physics.step(state, action, numbers) - expected, expected).max() <= 1e-10
    leaf = numbers["geom_friction"].expand(N, -1, -1).clone().requires_grad_()
    output = physics.step(state, action, {"geom_friction": leaf})
    rows = [torch.autograd.grad(output[:, i].sum(), leaf, retain_graph=True)[0] for i in range(output.shape[1])]
    found, expected = torch.stack(rows, 1).flatten(2), differences(BOXED, numbers, "geom_friction")
    assert expected.abs().max() > 1e-3
    assert scaled(found - expected, expected).sort().values[-2] <= 1e-6


def test_each_environment_has_numbers_of_its_own():
    model = CARTS[0]
    _, state, action = samples(model, N)
    physics, generator = physics_of(model), torch.Generator().manual_seed(3)
    own = physics.parameters()["body_mass"]
    masses = own * (1.0 + torch.rand(N, *own.shape, dtype=torch.float64, generator=generator))
    masses.requires_grad_()
    together = physics.step(state, action, {"body_mass": masses})
    (gradient,) = torch.autograd.grad(together.sum(), masses)
    for i in range(N):
        mass = masses[i].detach().requires_grad_()
        alone = physics.step(state[i : i + 1], action[i : i + 1], {"body_mass": mass})
        assert torch.equal(alone[0], together[i])
        assert torch.equal(torch.autograd.grad(alone.sum(), mass)[0], gradient[i])
    shared = own.requires_grad_()
    (total,) = torch.autograd.grad(physics.step(state, action, {"body_mass": shared}).sum(), shared)
    each = own.detach().expand(N, -1).clone().requires_grad_()
    (parts,) = torch.autograd.grad(physics.step(state, action, {"body_mass": each}).sum(), each)
    assert torch.allclose(total, parts.sum(0), rtol=1e-12, atol=0.0)


def test_derivatives_by_state_and_action_are_those_without_parameters():
    model = CARTS[0]
    task, state, action = samples(model, N)
    plain = jacobian(make_physics(task, "warp", dtype=torch.float64).step, state, action)
    assert scaled(jacobian(physics_of(model).step, state, action) - plain, plain).max() <= 1e-10


def test_copies_take_the_same_parameters():
    _, state, action = samples(CARTS[0], N)
    physics = make_physics(CARTS[0](), "warp", dtype=torch.float64, parameters=("gravity", "body_mass", "gravity"))
    twin, numbers = copy.deepcopy(physics), {"gravity": torch.zeros(3, dtype=torch.float64)}
    assert physics.parameter_names == twin.parameter_names == ("body_mass", "gravity")
    assert torch.equal(physics.step(state, action, numbers), twin.step(state, action, numbers))
    physics.parameters()["body_mass"].zero_()
    assert physics.parameters()["body_mass"].sum() > 0.0, "the caller gets copies"


def test_what_is_no_parameter_is_refused_in_a_sentence():
    task = CARTS[0]()
    with pytest.raises(InputError, match=r"unknown parameter of backend warp .* 'mass': choose one of .*body_mass"):
        make_physics(task, "warp", parameters=("mass",))
    with pytest.raises(InputError, match="parameters is 'body_mass'; accepted are several names"):
        make_physics(task, "warp", parameters="body_mass")
    with pytest.raises(InputError, match="'body_mass': there is none; use backend warp"):
        make_physics(task, "mujoco", parameters=("body_mass",))
    with pytest.raises(InputError, match="'body_mass': there is none; use backend warp"):
        make_physics(make_task("Pendulum"), "warp", parameters=("body_mass",))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("<option ", '<option noslip_iterations="3" '), "noslip iterations"),
        (("<actuator>", '<actuator><adhesion body="ball" ctrlrange="0 1"/>'), "actuators on bodies"),
    ],
)
def test_parameters_of_a_model_that_takes_none_are_refused_in_a_sentence(change, what):
    with pytest.raises(InputError, match=f"a model with {what} takes no parameters"):
        make_physics(model("Special", LEG.replace(*change), "Euler")(), "warp", parameters=("gravity",))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"dof_damping": torch.zeros(2)}, "unknown parameter of .* 'dof_damping': choose one of body_mass"),
        ({"gravity": [0.0, 0.0, 1.0]}, "parameter gravity is a list; accepted is a torch tensor"),
        ({"gravity": torch.zeros(2, dtype=torch.float64)}, r"shape \(2,\); accepted are \(3,\) and \(12, 3\)"),
        ({"gravity": torch.zeros(3)}, "parameter gravity is torch.float32 on cpu; this physics takes torch.float64"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_in_a_sentence(given, sentence):
    _, state, action = samples(CARTS[0], N)
    physics = make_physics(CARTS[0](), "warp", dtype=torch.float64, parameters=("gravity", "body_mass"))
    with pytest.raises(InputError, match=sentence):
        physics.step(state, action, given)


def test_a_physics_without_parameters_takes_none():
    task, state, action = samples(CARTS[0], N)
    physics = make_physics(task, "mujoco", dtype=torch.float64)
    assert physics.parameters() == {} and torch.equal(physics.step(state, action, {}), physics.step(state, action))
    with pytest.raises(InputError, match=r"'gravity': there is none; name it in make_physics"):
        physics.step(state, action, {"gravity": torch.zeros(3, dtype=torch.float64)})

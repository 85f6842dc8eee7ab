"""Stage 5, emission: expressions become straight-line C++, once per scope.

The code runs on *lanes*: a ``vec`` holds one number for each of a few environments, a ``mask`` one condition. On a CPU
these are SIMD vectors; on a GPU, where a thread has one environment, they are a plain number and a bool. A branch
or loop is taken if any lane needs it; ``select`` leaves the other lanes as they are.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import reflection
from mage_diffsim.envs.warp.compiler.graph import Node, is_constant, reachable
from mage_diffsim.envs.warp.compiler.searches import EVERY

TABLE = "static const"
"""How lines of code begin that are arrays of numbers."""

PRELUDE = """
#ifdef __clang__
    #pragma clang fp contract(fast)
#endif
    typedef {real} real;
    typedef {vec} vec;
    typedef {mask} mask;
    const int lanes = {lanes};
    const int rows = state.shape[0];
    const int first = thread * lanes;
    auto splat = [](real x) -> vec {{ return {splat}; }};
    auto select = [](mask c, vec a, vec b) -> vec {{ return c ? a : b; }};
    auto any = [](mask c) -> bool {{ return {any}; }};
    auto over = [](vec a, vec b) -> vec {{ {over} }};
    auto each_sin = [](vec x) -> vec {{ {each_sin} }};
    auto each_cos = [](vec x) -> vec {{ {each_cos} }};
    auto each_sqrt = [](vec x) -> vec {{ {each_sqrt} }};
    auto each_power = [](vec x, real p) -> vec {{ {each_power} }};
    auto load = [=](const real* data, int width, int column) -> vec {{ {load} }};
    auto store = [=](real* data, int width, int column, vec x) {{ {store} }};
"""

QUOTIENT = 'real y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(b)); return a * y;'
ROOT = 'real y; asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y;'
"""Quotient and root on a GPU in float32: to 2 units in the last place, without the branches of the exact ones, which
cut the code into pieces that are scheduled apart."""
POLYNOMIALS = {
    "float": """
            const vec sine = r + r * rr * (-1.6666654611e-1f + rr * (8.3321608736e-3f - rr * 1.9515295891e-4f));
            const vec cosine = real(1) - real(0.5) * rr + rr * rr * (4.166664568298827e-2f + rr
                * (-1.388731625493765e-3f + rr * 2.443315711809948e-5f));""",
    "double": """
            const vec sine = r + r * rr * (-1.66666666666666324348e-01 + rr * (8.33333333332248946124e-03 + rr
                * (-1.98412698298579493134e-04 + rr * (2.75573137070700676789e-06 + rr * (-2.50507602534068634195e-08
                + rr * 1.58969099521155010221e-10)))));
            const vec half = real(0.5) * rr, rest = real(1) - half;
            const vec cosine = rest + (((real(1) - rest) - half) + rr * rr * (4.16666666666666019037e-02 + rr
                * (-1.38888888888741095749e-03 + rr * (2.48015872894767294178e-05 + rr * (-2.75573143513906633035e-07
                + rr * (2.08757232129817482790e-09 - rr * 1.13596475577881948265e-11))))));""",
}
"""Sine and cosine within an eighth of a turn: of the Cephes library (S. Moshier) and of fdlibm (Sun Microsystems)."""
_REDUCED = """
        const double turns = rint((double)x * 0.63661977236758134308);
        const real r = (real)((double)x - turns * 1.57079632679489661923), rr = r * r;
        const int quadrant = (int)(long long)turns;"""
SINGLE = {
    "each_sin": _REDUCED
    + POLYNOMIALS["float"]
    + """
        const real y = quadrant & 1 ? cosine : sine;
        return quadrant & 2 ? -y : y;""",
    "each_cos": _REDUCED
    + POLYNOMIALS["float"]
    + """
        const real y = quadrant & 1 ? sine : cosine;
        return (quadrant + 1) & 2 ? -y : y;""",
}
"""Sine and cosine in float32 for one lane, without a branch for large angles: exact reduction in double precision, then
polynomials whose errors are below 1e-7."""


REDUCTION = {
    "float": ("0.636619772", "12582912", ("1.5703125", "4.837512969970703125e-4", "7.549789948768648e-8"), "8192"),
    "double": (
        "0.63661977236758134308",
        "6755399441055744.0",
        ("1.57079632673412561417", "6.07710050630396597660e-11", "2.02226624879595063154e-21"),
        "1e5",
    ),
}
"""How angles are reduced to an eighth of a turn: 2 / pi, a number to which adding rounds to whole ones, pi / 2 in parts
whose products with whole numbers are exact (of the same libraries), and the angle up to which they are."""


def _lanes_turn(function: str, real: str, lanes: int) -> str:
    """Sine or cosine of all lanes at once, to a unit in the last place of 1; large angles one by one."""
    odd, even, shift = ("cosine", "sine", "q") if function == "sin" else ("sine", "cosine", "(q + 1)")
    suffix, whole = ("f", "int") if real == "float" else ("", "long long")
    two_over_pi, shift_to_whole, parts, most = REDUCTION[real]
    reduced = "x"
    for part in parts:
        reduced = f"({reduced} - turns * real({part}))"
    return f"""
        typedef {whole} whole __attribute__((ext_vector_type({lanes})));
        const vec turns = (x * real({two_over_pi}) + real({shift_to_whole})) - real({shift_to_whole});
        const vec r = {reduced};
        const vec rr = r * r;{POLYNOMIALS[real]}
        const whole q = __builtin_convertvector(turns, whole);
        const vec either = ((q & 1) != 0) ? {odd} : {even};
        vec y = (({shift} & 2) != 0) ? -either : either;
        const auto large = !((x < real({most})) & (x > real(-{most})));
        if (__builtin_reduce_or(large) != 0) {{
            for (int i = 0; i < lanes; ++i) if (large[i]) y[i] = {function}{suffix}(x[i]);
        }}
        return y;"""


def _on_gpu(there: str, here: str) -> str:
    return f"\n#ifdef __CUDA_ARCH__\n{there}\n#else\n{here}\n#endif\n"


def prelude(real: str, lanes: int) -> str:
    """The types and helpers that emitted code uses.

    Args:
        real: "float" or "double".
        lanes: environments per thread; 1 on a GPU.
    """
    suffix = "f" if real == "float" else ""
    if lanes == 1:
        each = {f"each_{f}": f"return {f}{suffix}(x);" for f in ("sin", "cos", "sqrt")}
        over = "return a / b;"
        if real == "float":
            each, over = SINGLE | {"each_sqrt": _on_gpu(ROOT, each["each_sqrt"])}, _on_gpu(QUOTIENT, over)
        return PRELUDE.format(
            real=real,
            vec="real",
            mask="bool",
            lanes=1,
            splat="x",
            any="c",
            over=over,
            **each,
            each_power=f"return pow{suffix}(x, p);",
            load="return data[first * width + column];",
            store="data[first * width + column] = x;",
        )
    loop = "for (int i = 0; i < lanes; ++i)"
    return PRELUDE.format(
        real=real,
        vec=f"real __attribute__((ext_vector_type({lanes})))",
        mask="decltype(vec() < vec())",
        lanes=lanes,
        splat="(vec)(x)",
        any="__builtin_reduce_or(c) != 0",
        over="return a / b;",
        each_sin=_lanes_turn("sin", real, lanes),
        each_cos=_lanes_turn("cos", real, lanes),
        each_sqrt=f"vec y; {loop} y[i] = sqrt{suffix}(x[i]); return y;",
        each_power=f"vec y; {loop} y[i] = pow{suffix}(x[i], p); return y;",
        # The last thread repeats the last environment.
        load=f"vec y; {loop} {{ int row = first + i < rows ? first + i : rows - 1; "
        "y[i] = data[row * width + column]; } return y;",
        store=f"{loop} if (first + i < rows) data[(first + i) * width + column] = x[i];",
    )


HELPERS = {
    "atan2": (("y", "x"), "return atan2{f}(y, x);"),
    "floor": (("x",), "return floor{f}(x);"),
    **{f"reflection{n}": (("a", "b", "g"), reflection.code(n)) for n in range(4)},
}
"""Functions that few models need: arguments, and the code for one lane; {f} is the suffix of float functions."""


def helpers(real: str, lanes: int) -> dict[str, str]:
    """The definitions of :data:`HELPERS` by the names under which code calls them."""
    found = {}
    for name, (arguments, body) in HELPERS.items():
        numbers, vectors = (", ".join(f"{kind} {x}" for x in arguments) for kind in ("real", "vec"))
        one = f"[]({numbers}) -> real {{ {body.replace('{f}', 'f' if real == 'float' else '')} }};"
        if lanes > 1:
            call = f"one({', '.join(f'{x}[i]' for x in arguments)})"
            loop = f"vec result; for (int i = 0; i < lanes; ++i) result[i] = {call}; return result;"
            one = f"[]({vectors}) -> vec {{ auto one = {one} {loop} }};"
        found[f"each_{name}"] = f"    auto each_{name} = {one}"
    return found | {search.name: search.helper(real, lanes) for search in EVERY}


STRAIGHT = 3000
"""Lines without a branch at most: the C++ compiler takes 240 s for 84,000 lines in one piece, 54 s with branches."""


class Writer:
    """Writes lines of C++ in blocks; each block knows the expressions computed in it and around it.

    Args:
        head: code before the first line.
        helpers: definitions of functions by name; those that are called come after the head.
    """

    def __init__(self, head: str = "", helpers: Mapping[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self._head, self._helpers = head, helpers or {}
        self._known: list[set[int]] = [set()]
        self._visible = 0
        self._straight = 0
        """Number of the line after the last branch."""

    @property
    def text(self) -> str:
        """The code written so far."""
        code = "\n".join(self.lines)
        called = [text for name, text in self._helpers.items() if f"{name}(" in code]
        return "\n".join([*filter(None, [self._head]), *called, code])

    def __call__(self, line: str) -> None:
        self.lines.append("    " * len(self._known) + line)
        if line.endswith(("{", "}", "return;")):
            self._straight = len(self.lines)

    @contextlib.contextmanager
    def block(self, header: str, fresh: bool = False) -> Iterator[None]:
        """A context that writes ``header { ... }`` around the code inside, and forgets after it what that computes.

        Args:
            header: the code before the brace; may be empty.
            fresh: whether to compute everything again inside, because variables have changed.
        """
        self(header + " {")
        before = self._visible
        self._known.append(set())
        if fresh:
            self._visible = len(self._known) - 1
        yield
        self._known.pop()
        self._visible = before
        self("}")

    def loop(self, header: str, fresh: bool = False) -> contextlib.AbstractContextManager[None]:
        """As :meth:`block`, around a loop that is not unrolled: long code misses caches of instructions."""
        return self.block(f'_Pragma("unroll 1") for ({header})', fresh)

    @contextlib.contextmanager
    def copies(self, n: int, numbers: Mapping[str, Sequence[float]]) -> Iterator[None]:
        """A context whose code runs n times, each time with other values of the variables ``numbers``."""
        if n == 1:
            yield
            return
        with self.loop(f"int copy = 0; copy < {n}; ++copy"):
            for name, values in numbers.items():
                text = literal(values[-1])
                for i in reversed(range(n - 1)):
                    text = f"copy == {i} ? {literal(values[i])} : {text}"
                self(f"const vec {name} = splat({text});")
            yield

    def compute(self, *expressions: Any) -> list[str]:
        """Write the operations of the expressions that are not computed yet; returns how the code refers to each."""
        for node in reachable(expressions, set().union(*self._known[self._visible :])):
            if len(self.lines) - self._straight >= STRAIGHT:
                self("if (rows < 0) return;")
            self._known[-1].add(node.index)
            if node.kind != "input":
                kind = "mask" if node.kind == "less" else "vec"
                self(f"const {kind} n{node.index} = {_operation(node)};")
        return [reference(x) for x in expressions]

    def array(self, name: str, shape: tuple[int, int], begin: int | None) -> None:
        """Write a two-dimensional array of ``vec``: a local one, or from number ``begin`` of the kernel's scratch."""
        if begin is None:
            self(f"vec {name}[{shape[0]}][{shape[1]}];")
        else:
            self(f"vec (* __restrict__ {name})[{shape[1]}] = (vec (*)[{shape[1]}])((vec*)scratch + {begin});")

    def vectors(self, names: Iterable[str], size: int) -> None:
        """Write arrays ``{name}_`` of zeros, and ``{name}{i}`` as names of their elements."""
        for name in names:
            self(f"vec {name}_[{size}]; for (int i = 0; i < {size}; ++i) {name}_[i] = splat(0);")
            self(f"vec {', '.join(f'&{name}{i} = {name}_[{i}]' for i in range(size))};")

    def table(self, name: str, values: Sequence[float | int], kind: str = "int") -> None:
        """Write an array of numbers that does not change, of the C++ type ``kind``."""
        self(table(name, values, kind))

    def declare(self, names: Iterable[str], value: str = "splat(0)") -> None:
        """Write declarations of variables that will change."""
        for name in names:
            self(f"vec {name} = {value};")

    def assign(self, names: Sequence[str], expressions: Sequence[Any]) -> None:
        """Write assignments of variables to expressions of their old values."""
        self.compute(*expressions)
        for name, value in zip(names, map(vector, expressions), strict=True):
            if value != name:
                self(f"{name} = {value};")


def table(name: str, values: Sequence[float | int], kind: str = "int") -> str:
    """Code of an array of numbers that does not change, of the C++ type ``kind``."""
    suffix = "ull" if kind == "unsigned long long" else ""
    text = [literal(x) if kind == "real" else f"{x}{suffix}" for x in values] or ["0"]
    return f"{TABLE} {kind} {name}[] = {{{', '.join(text)}}};"


def reference(x: Any) -> str:
    """How emitted code refers to a computed expression."""
    if isinstance(x, bool):  # a condition that the model decides
        return "(splat(0) < splat(1))" if x else "(splat(1) < splat(0))"
    if is_constant(x):
        return literal(x)
    return x.args[0] if x.kind == "input" else f"n{x.index}"


def vector(x: Any) -> str:
    """How emitted code refers to a computed expression as a ``vec``, also to a number."""
    return f"splat({reference(x)})" if is_constant(x) else reference(x)


def literal(x: float) -> str:
    """A number in emitted code."""
    if not math.isfinite(x):
        raise ValueError(f"{x} cannot be written into a kernel; a stage has to leave it out")
    return f"real({float(x)!r})"


def total(terms: Sequence[str]) -> str:
    """The sum of pieces of code."""
    return " + ".join(terms) if terms else "splat(0)"


def _operation(node: Node) -> str:
    a = [reference(x) if isinstance(x, (Node, float, int)) else x for x in node.args]
    match node.kind:
        case "add" | "sub" | "mul" | "less":
            return f"{a[0]} {dict(add='+', sub='-', mul='*', less='<')[node.kind]} {a[1]}"
        case "div":
            return f"over({vector(node.args[0])}, {a[1]})"
        case "neg":
            return f"-{a[0]}"
        case "where":
            return f"select({a[0]}, {vector(node.args[1])}, {vector(node.args[2])})"
        case "power":
            return f"each_power({a[0]}, {a[1]})"
    return f"each_{node.kind}({', '.join(map(vector, node.args))})"


OPERATIONS = (" + ", " - ", " * ", " / ", " < ", " <= ", " >= ", " & ", " | ", " = -", "+=", "-=", "*=", "!", "(")
"""Pieces of code, of which every vector that emitted code computes has at least one."""


def operations(code: str) -> int:
    """An upper bound of the number of vectors that emitted code computes."""
    return sum(map(code.count, OPERATIONS))


_ARRAY = re.compile(r"\b(?P<kind>vec|int|unsigned long long|Mark) \w+(?P<shape>(?:\[\d+\])+);")


def array_bytes(code: str, vector: int) -> int:
    """The bytes of the arrays that emitted code declares, tables aside; a ``vec`` has ``vector`` bytes."""
    sizes = {"vec": vector, "int": 4, "unsigned long long": 8, "Mark": max(4, vector)}
    return sum(
        sizes[found["kind"]] * math.prod(map(int, re.findall(r"\d+", found["shape"])))
        for found in _ARRAY.finditer(code)
    )

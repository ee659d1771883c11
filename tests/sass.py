"""NVIDIA's machine code (SASS) as nvdisasm prints it: blocks, the path that counts, its accesses.

The path is what a thread executes that takes part in whole packs of aligned arrays. A kernel has
ways around it, for tails and for arrays that are not aligned; they are known by their narrow or
guarded accesses to the same arrays. Of all ways through the kernel from its entry to an exit, each
loop once, `Function.path` is therefore the one with the most bytes in accesses of 16 bytes or more
to the operands; among these the one with the fewest narrow ones; then with the fewest guarded ones;
then with the fewest CALLs, for what ptxas puts out of line and branches around is meant for
exceptional numbers (IEEE division's, say); and last the longest: of two sides of any other branch
the dearer counts. A subroutine that all threads call, such as a division of 64 bits, counts with
its own longest way.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

# Where the parameters of a kernel begin in constant bank 0, by compute capability.
PARAMETERS = {80: 0x160, 90: 0x210, 100: 0x380}
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints"
WIDE = 16  # bytes of the accesses that a kernel makes where it can

LABEL = re.compile(r"^([.$\w]+):$")
LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
TARGET = re.compile(r"`\((\S+?)\)")
REGISTER = re.compile(r"\b(U?R)(\d+)\b")
CONSTANT = re.compile(r"c\[0x0\]\[(0x[0-9a-f]+)\]")
# Masks and shifts, comparisons, selections: a pointer that goes through one of these (to find how
# it is aligned, say) is no longer part of an address. Nor is it looked for in what memory held.
NO_ADDRESS = ("LOP3", "ULOP3", "SHF", "USHF", "ISETP", "UISETP", "PRMT", "LDG", "LDS", "LDL")


def tool(name: str) -> Path:
    """One of NVIDIA's programs in Triton's wheel, which know every generation."""
    triton = pytest.importorskip("triton")
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def assemble(ptx: str, cubin: Path) -> str:
    """What `ptxas -v` says."""
    (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    source = cubin.with_suffix(".ptx")
    source.write_text(ptx)
    command = [tool("ptxas-blackwell"), "-v", f"-arch={target}", "-o", cubin, source]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Unsupported .version" in done.stderr and not pinned():
        pytest.skip("NVRTC writes PTX of a later version than the ptxas of Triton's wheel can read")
    assert done.returncode == 0, done.stderr
    return done.stderr


def pinned() -> bool:
    """Whether the compilers are those of one of the pinned sets."""
    found = {f"{each.name}=={each.version}" for each in metadata.distributions()}
    compilers = {line for line in found if line.startswith(("triton==", "nvidia-cuda-nvrtc"))}
    files = (CONSTRAINTS / f"{name}.txt" for name in ("cpu", "cuda12", "cuda13"))
    return any(compilers <= set(file.read_text().splitlines()) for file in files)


def disassemble(ptx: str) -> dict[str, Function]:
    """The functions of the machine code that ptxas makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        assemble(ptx, cubin)
        command = [tool("nvdisasm"), "-c", cubin]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return parse(text)


@dataclass(frozen=True)
class Instruction:
    opcode: str  # "LDG.E.128.CONSTANT"
    operands: tuple[str, ...] = ()
    guard: str = ""  # "P0" or "!P0": executed by some of the threads

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def mods(self) -> list[str]:
        return self.opcode.split(".")[1:]

    @property
    def conditional(self) -> bool:
        """Whether a branch or an exit may fall through."""
        predicates = [o for o in self.operands if re.fullmatch(r"!?U?P\d+", o)]
        return bool(predicates) or self.guard not in ("", "PT", "UPT")

    @property
    def target(self) -> str | None:
        found = TARGET.findall(" ".join(self.operands))
        return found[-1] if found else None

    @property
    def width(self) -> int:
        """Bytes that a memory access moves for a thread."""
        sizes = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((sizes[mod] for mod in self.mods if mod in sizes), 4)

    @property
    def address(self) -> str:
        return re.findall(r"\[([^\[\]]*)\]", " ".join(self.operands))[-1]


Mention = tuple[str, int]  # "R" or "UR", and the number


def _registers(text: str) -> list[Mention]:
    return [(kind, int(number)) for kind, number in REGISTER.findall(text)]


def _written(i: Instruction) -> tuple[Mention, int] | None:
    """The first register that an instruction writes, and how many."""
    first = _registers(i.operands[0])[:1] if i.operands and "[" not in i.operands[0] else []
    if not first:
        return None
    count = {"64": 2, "128": 4, "256": 8, "WIDE": 2}
    return first[0], next((count[mod] for mod in i.mods if mod in count), 1)


def origins(code: Sequence[Instruction], k: int) -> set[int]:
    """Offsets in constant bank 0 of all that goes into the address of access k of a path.

    Among them is the pointer: the kernel's parameter to which the rest is added. What was written
    under the access's own guard was written last; under another guard, perhaps not at all.
    """
    found: set[int] = set()
    seen: set[tuple[int, Mention]] = set()
    guard = code[k].guard

    def look(register: Mention, before: int) -> None:
        for j in range(before - 1, -1, -1):
            i = code[j]
            written = _written(i)
            if written is None:
                continue
            (kind, first), count = written
            place = register[1] - first
            opposite = i.guard != guard and i.guard.lstrip("!") == guard.lstrip("!")
            if kind != register[0] or not 0 <= place < count or opposite:
                continue
            if (j, register) not in seen and i.name not in NO_ADDRESS:
                seen.add((j, register))
                found.update(int(c, 16) + 4 * place for c in CONSTANT.findall(str(i.operands)))
                for source in _registers(" ".join(i.operands[1:])):
                    look(source, j)
            if i.guard in ("", guard):
                return

    for register in _registers(code[k].address):
        look(register, k)
    return found


@dataclass(frozen=True)
class Access:
    """A global access on a path."""

    array: str  # what the pointer was given to the kernel for; "?" if it was not found
    kind: str  # load or store
    width: int
    guarded: bool

    def __str__(self) -> str:
        return f"{self.array} {self.kind} {8 * self.width}"


@dataclass
class Block:
    code: list[Instruction] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


Pointers = dict[int, str]  # offset in constant bank 0 → the array


@dataclass(frozen=True)
class MainPath:
    blocks: tuple[int, ...]
    code: tuple[Instruction, ...]
    loop: tuple[Instruction, ...]  # the part of it that repeats; () if it runs straight on
    accesses: tuple[Access, ...]  # of the loop, or of all if it runs straight on

    def count(self, *names: str) -> tuple[int, int]:
        """How many instructions, or those of these names: in the whole path, in the loop."""
        whole, loop = (
            sum(not names or i.name in names for i in part) for part in (self.code, self.loop)
        )
        return whole, loop


@dataclass
class Function:
    name: str
    blocks: list[Block]

    @cached_property
    def places(self) -> dict[str, int]:
        return {label: k for k, block in enumerate(self.blocks) for label in block.labels}

    @cached_property
    def subroutines(self) -> dict[str, int]:
        """Where those begin that are called."""
        calls = (i.target for block in self.blocks for i in block.code if i.name == "CALL")
        return {name: self.places[name] for name in calls if name is not None}

    @cached_property
    def code(self) -> list[Instruction]:
        """Every instruction that can be reached."""
        return [i for k in sorted(self.follows) for i in self.blocks[k].code]

    @cached_property
    def follows(self) -> dict[int, list[int]]:
        """Which blocks may follow on each block that can be reached.

        BSYNC continues where the BSSY said whose barrier it waits at: so these are carried along.
        A subroutine returns behind its CALL.
        """
        follows: dict[int, list[int]] = {}
        seen: set[tuple[int, frozenset[tuple[str, str]]]] = set()
        todo: list[tuple[int, dict[str, str]]] = [(k, {}) for k in (0, *self.subroutines.values())]
        while todo:
            k, barriers = todo.pop()
            state = k, frozenset(barriers.items())
            if state in seen:
                continue
            seen.add(state)
            barriers = dict(barriers)
            for i in self.blocks[k].code:
                if i.name == "BSSY":
                    barriers[i.operands[0]] = str(i.target)
            last, after = self.blocks[k].code[-1:], []
            ends = {"BRA", "EXIT", "BSYNC", "RET"}
            if not last or last[0].name not in ends or last[0].conditional:
                after.append(k + 1)
            if last and last[0].name == "BRA":
                after.append(self.places[str(last[0].target)])
            if last and last[0].name == "BSYNC":
                after.append(self.places[barriers[last[0].operands[0]]])
            known = follows.setdefault(k, [])
            known += [n for n in after if n not in known]
            todo += [(n, barriers) for n in after]
        return follows

    @cached_property
    def loops(self) -> list[tuple[int, frozenset[int]]]:
        """The first block of each loop, and all of them. Two with one beginning are one."""
        back: dict[int, list[int]] = {}
        state: dict[int, str] = {}

        def visit(k: int) -> None:
            state[k] = "open"
            for n in self.follows[k]:
                if state.get(n) == "open":
                    back.setdefault(n, []).append(k)
                elif n not in state:
                    visit(n)
            state[k] = "done"

        for k in (0, *self.subroutines.values()):
            if k not in state:
                visit(k)
        before: dict[int, list[int]] = {}
        for k, after in self.follows.items():
            for n in after:
                before.setdefault(n, []).append(k)
        found = []
        for head, ends in back.items():
            body, todo = {head}, list(ends)
            while todo:
                k = todo.pop()
                if k not in body:
                    body.add(k)
                    todo += before.get(k, [])
            found.append((head, frozenset(body)))
        return found

    def _best(self, value: Callable[[int], tuple[int, ...]], first: int = 0) -> tuple[int, ...]:
        """The way from a block to an exit, each loop once, with the largest sum of values."""
        again = {(k, head) for head, body in self.loops for k in body if head in self.follows[k]}
        best: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}

        def visit(k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
            if k not in best:
                onward = [visit(n) for n in self.follows[k] if (k, n) not in again]
                ends = any(i.name == "EXIT" for i in self.blocks[k].code) or not onward
                if ends:
                    onward.append(((0,) * len(value(k)), ()))
                rest, blocks = max(onward)
                total = tuple(a + b for a, b in zip(value(k), rest, strict=True))
                best[k] = total, (k, *blocks)
            return best[k]

        return visit(first)[1]

    def _accesses(self, blocks: Iterable[int], pointers: Pointers) -> dict[int, list[Access]]:
        """The global accesses of each block of a path."""
        code: list[Instruction] = []
        found: dict[int, list[Access]] = {}
        for block in blocks:
            found[block] = []
            for i in self.blocks[block].code:
                code.append(i)
                if i.name not in ("LDG", "STG"):
                    continue
                names = {pointers[o] for o in origins(code, len(code) - 1) if o in pointers}
                name = names.pop() if len(names) == 1 else "?"
                kind = "load" if i.name == "LDG" else "store"
                found[block].append(Access(name, kind, i.width, bool(i.guard)))
        return found

    def path(self, pointers: Pointers, operands: Sequence[str]) -> MainPath:
        """See above; `pointers`: where the kernel's parameters hold which array's address."""
        # A block's accesses are looked at on the longest way there: any way sets the pointers.
        reached: dict[int, list[Access]] = {}
        for k in self.follows:
            if k not in reached and any(i.name in ("LDG", "STG") for i in self.blocks[k].code):
                for block, found in self._accesses(self._through(k), pointers).items():
                    reached.setdefault(block, found)

        def value(k: int) -> tuple[int, ...]:
            ours = [a for a in reached.get(k, ()) if a.array in operands]
            wide = [a.width for a in ours if a.width >= WIDE]
            narrow, guarded = len(ours) - len(wide), sum(a.guarded for a in ours)
            calls = sum(i.name == "CALL" for i in self.blocks[k].code)
            return sum(wide), -narrow, -guarded, -calls, len(self.blocks[k].code)

        blocks = self._best(value)
        accesses = self._accesses(blocks, pointers)

        def wide_bytes(body: frozenset[int]) -> int:
            each = [a for k in blocks if k in body for a in accesses[k]]
            return sum(a.width for a in each if a.array in operands and a.width >= WIDE)

        loops = [body for _, body in self.loops if wide_bytes(body)]
        inner = [body for body in loops if not any(other < body for other in loops)]
        main = max(inner, key=wide_bytes, default=frozenset())
        repeated = tuple(k for k in blocks if k in main)
        return MainPath(
            blocks,
            tuple(self._with_subroutines(blocks)),
            tuple(self._with_subroutines(repeated)),
            tuple(a for k in repeated or blocks for a in accesses[k]),
        )

    def _with_subroutines(self, blocks: Iterable[int]) -> Iterable[Instruction]:
        for i in (i for k in blocks for i in self.blocks[k].code):
            yield i
            if i.name == "CALL":
                first = self.subroutines[str(i.target)]
                called = self._best(lambda k: (len(self.blocks[k].code),), first)
                yield from self._with_subroutines(called)

    def _through(self, block: int) -> tuple[int, ...]:
        """A way from the entry to an exit through this block."""
        return self._best(lambda k: (int(k == block), len(self.blocks[k].code)))


def parse(text: str) -> dict[str, Function]:
    """Functions by name; subroutines that ptxas adds belong to the kernel that calls them."""
    functions: dict[str, Function] = {}
    blocks: list[Block] = []
    fresh = True  # the next instruction begins a block
    for line in text.splitlines():
        if label := LABEL.match(line.strip()):
            name = label.group(1)
            if name.startswith(".text."):
                blocks = [Block()]
                functions[name.removeprefix(".text.")] = Function(name[6:], blocks)
                fresh = False
            elif blocks:
                if blocks[-1].code:
                    blocks.append(Block())
                blocks[-1].labels.append(name)
                fresh = False
        elif match := LINE.match(line):
            guard, opcode, rest = match.groups()
            if fresh:
                blocks.append(Block())
            operands = tuple(re.split(r",\s*", rest)) if rest else ()
            blocks[-1].code.append(Instruction(opcode, operands, guard or ""))
            fresh = blocks[-1].code[-1].name in ("BRA", "EXIT", "BSYNC", "RET")
    return functions


def counts(code: Iterable[Instruction]) -> Counter[str]:
    return Counter(i.name for i in code)


def local_memory(function: Function) -> list[str]:
    """Accesses to memory that stands in for registers: spills, and arrays with varying indices."""
    return [i.opcode for i in function.code if i.name in ("LDL", "STL")]


def argument_pointers(capability: int, params: Sequence[Any], names: Sequence[str]) -> Pointers:
    """Where a kernel finds the arrays: `params` as PTX declares them, `names` alike ("": none)."""
    base = PARAMETERS[capability]
    return {base + p.offset: name for p, name in zip(params, names, strict=False) if name}

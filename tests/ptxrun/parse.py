"""PTX text -> modules, entries and instructions.

Device functions are inlined at their calls (a parameter is a slot of local memory), so that a
program is one flat list of instructions.  Names are resolved here, scope by scope: a register
`%r1` of scope 7 becomes `%r1#7`.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import PTXError
from .floats import WIDTH


class Reg(NamedTuple):
    name: str


class Imm(NamedTuple):
    value: int | float
    bits: int | None = None  # exact bits of a 0f.. / 0d.. literal
    width: int = 0  # 32 or 64 for those, 0 for integers


class Sym(NamedTuple):
    """A variable: its space and the name under which the program knows its offset."""

    space: str
    name: str


class Special(NamedTuple):
    name: str


class Vec(NamedTuple):
    items: tuple[Any, ...]


class Mem(NamedTuple):
    base: Any
    offset: int


class Not(NamedTuple):
    item: Any


class Pair(NamedTuple):
    first: Any
    second: Any


class Sink(NamedTuple):
    """The operand `_`."""


@dataclass
class Variable:
    space: str
    type: str
    name: str
    align: int
    size: int
    extern: bool
    init: str | None
    offset: int = 0


@dataclass
class Instruction:
    text: str
    line: int
    op: str = ""
    mods: list[str] = field(default_factory=list)
    ops: list[Any] = field(default_factory=list)
    guard: str | None = None
    negated: bool = False
    target: Any = None

    @property
    def types(self) -> list[str]:
        return [m for m in self.mods if m in WIDTH]

    def mod(self, *names: str) -> str | None:
        """The first of the names that is a modifier of the instruction."""
        return next((m for m in self.mods if m in names), None)

    def unsupported(self) -> PTXError:
        return PTXError(f"unsupported instruction: {self.text} (line {self.line})")


def match_brace(text: str, i: int) -> int:
    """Index of the bracket that closes the one at i."""
    depth = 0
    for m in re.compile(r"[(){}]").finditer(text, i):
        depth += 1 if m.group() in "({" else -1
        if depth == 0:
            return m.start()
    raise PTXError("unbalanced brackets")


def split_commas(s: str) -> list[str]:
    """Split at the commas outside brackets."""
    out, depth, start = [], 0, 0
    for i, ch in enumerate(s):
        if ch in "{[(":
            depth += 1
        elif ch in "}])":
            depth -= 1
        elif ch == "," and depth == 0:
            out.append(s[start:i].strip())
            start = i + 1
    return [*out, s[start:].strip()] if s[start:].strip() else out


_ATTR = r"(?:\s*\.(?:align\s+\d+|ptr|shared|global|const|local|v2|v4|attribute\([^)]*\)))*"
_DECL = re.compile(
    r"\.(shared|global|const|local|param)\b("
    + _ATTR
    + r")\s*\.([a-z]+\d+)("
    + _ATTR
    + r")\s+([\w$%.]+)\s*((?:\[\d*\]\s*)*)(?:=(.*))?",
    re.DOTALL,
)


def parse_declaration(s: str) -> Variable:
    m = _DECL.search(s)
    if not m or m.group(3) not in WIDTH:
        raise PTXError(f"unsupported declaration: {s[:80]}")
    space, attr, ty, _, name, dims, init = m.groups()
    align = re.search(r"\.align\s+(\d+)", attr)
    unit = max(WIDTH[ty] // 8, 1) * (4 if ".v4" in attr else 2 if ".v2" in attr else 1)
    count = 1
    for d in re.findall(r"\[(\d*)\]", dims):
        count *= int(d or 0)
    return Variable(
        space, ty, name, int(align.group(1)) if align else unit, count * unit, ".extern" in s, init
    )


class Function(NamedTuple):
    name: str
    entry: bool
    returns: list[str]
    params: list[str]
    directives: str
    body: str | None
    start: int  # position of the body in the text


_HEAD = re.compile(r"(?:\.(?:visible|weak|extern|common)\s+)*\.(entry|func)\b")


class PTXModule:
    """Parsed PTX: module variables and functions."""

    def __init__(self, ptx: str | bytes):
        text = ptx.decode() if isinstance(ptx, bytes) else ptx
        text = text.replace("\0", "")
        if (k := text.find("\t.section")) >= 0:  # debug information comes last
            text = text[:k]

        def blank(m: re.Match[str]) -> str:
            return "\n" * m.group().count("\n")

        text = re.sub(r"/\*.*?\*/|//[^\n]*", blank, text, flags=re.DOTALL)
        text = re.sub(
            r"^\s*\.(loc|file|version|target|address_size)\b[^\n]*$",
            blank,
            text,
            flags=re.MULTILINE,
        )
        self.newlines = [m.start() for m in re.finditer("\n", text)]
        self.functions: dict[str, Function] = {}
        self.variables: list[Variable] = []
        self._programs: dict[str, Program] = {}
        i = 0
        while m := re.compile(r"\S").search(text, i):
            i = m.start()
            if h := _HEAD.match(text, i):
                i = self._function(text, h)
                continue
            semi = text.find(";", i)
            brace = text.find("{", i)
            if semi < 0:
                break
            if 0 <= brace < semi:  # an initializer
                semi = text.find(";", match_brace(text, brace))
            s = text[i:semi]
            if re.search(r"\.(shared|global|const)\b", s):
                self.variables.append(parse_declaration(s))
            i = semi + 1

    def _function(self, text: str, head: re.Match[str]) -> int:
        j, returns, params = head.end(), [], []
        if m := re.compile(r"\s*\(").match(text, j):
            e = match_brace(text, m.end() - 1)
            returns, j = split_commas(text[m.end() : e]), e + 1
        m = re.compile(r"\s*([\w$%.]+)\s*").match(text, j)
        assert m is not None
        name, j = m.group(1), m.end()
        if text[j] == "(":
            e = match_brace(text, j)
            params, j = split_commas(text[j + 1 : e]), e + 1
        m = re.compile(r"[^{;]*").match(text, j)
        assert m is not None
        end, body = m.end(), None
        start = end + 1
        if text[end] == "{":
            end = match_brace(text, end)
            body = text[start:end]
        if body is not None or name not in self.functions:
            self.functions[name] = Function(
                name, head.group(1) == "entry", returns, params, m.group(), body, start
            )
        return end + 1

    def entries(self) -> list[str]:
        return [f.name for f in self.functions.values() if f.entry and f.body is not None]

    def program(self, entry: str) -> Program:
        if entry not in self._programs:
            f = self.functions.get(entry)
            if f is None or f.body is None:
                raise PTXError(f"no entry {entry!r}; there are {self.entries()}")
            self._programs[entry] = Program(self, f)
        return self._programs[entry]


_INT = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")


class _Scope:
    def __init__(self, number: int):
        self.number = number
        self.names: dict[str, Any] = {}
        self.prefixes: dict[str, int] = {}


class Program:
    """One entry with its calls inlined: a flat list of instructions with resolved operands."""

    def __init__(self, module: PTXModule, entry: Function):
        self.module, self.name = module, entry.name
        self.code: list[Instruction] = []
        self.steps: list[Any] = []  # compiled by the machine when the program first runs
        self.labels: dict[str, int] = {}
        self.width: dict[str, int] = {"%cc": 1}
        self.offsets: dict[str, int] = {}  # of shared, local and parameter variables
        self.shared_size = self.local_size = self.param_size = 0
        self.params: list[Variable] = []
        self._scopes = 0
        self._dynamic: list[Variable] = []
        dims = re.search(r"\.reqnctapercluster\s+([\d,\s]+)", entry.directives)
        self.cluster = tuple(map(int, dims.group(1).split(","))) if dims else None
        top = self._scope()
        for p in entry.params:
            v = parse_declaration(p)
            v.offset = -(-self.param_size // v.align) * v.align
            self.param_size = v.offset + v.size
            self.params.append(v)
            top.names[v.name] = Sym("param", v.name)
            self.offsets[v.name] = v.offset
        for v in module.variables:
            top.names.setdefault(v.name, Sym("global" if v.space == "const" else v.space, v.name))
            if v.space == "shared":
                self._shared(v)
        self.globals = [v for v in module.variables if v.space in ("global", "const")]
        self._top = top
        self._body(entry, [top], None, 0)
        align = max([16] + [v.align for v in self._dynamic])
        if self._dynamic:
            self.shared_size = -(-self.shared_size // align) * align
        for v in self._dynamic:
            self.offsets[v.name] = self.shared_size
        self.code.append(Instruction("ret (end)", 0, "ret"))
        self.uses = Counter(re.findall(r"name='([^']+)'", repr([i.ops for i in self.code])))

    def _scope(self) -> _Scope:
        self._scopes += 1
        return _Scope(self._scopes)

    def _shared(self, v: Variable) -> None:
        if v.extern and v.size == 0:
            self._dynamic.append(v)
            return
        self.offsets[v.name] = -(-self.shared_size // v.align) * v.align
        self.shared_size = self.offsets[v.name] + v.size

    def _lookup(self, name: str, scopes: list[_Scope]) -> Any:
        for sc in reversed(scopes):
            if name in sc.names:
                return sc.names[name]
            stem = name.rstrip("0123456789")
            if stem in sc.prefixes and stem != name:
                reg = Reg(f"{name}#{sc.number}")
                self.width[reg.name] = sc.prefixes[stem]
                sc.names[name] = reg
                return reg
        return None

    def _registers(self, s: str, sc: _Scope) -> None:
        m = re.match(r"\.reg\s*\.(\w+)\s+(.*)", s, re.DOTALL)
        if not m:
            raise PTXError(f"unsupported declaration: {s[:80]}")
        w = WIDTH.get(m.group(1), 128)
        for name in split_commas(m.group(2)):
            if mm := re.match(r"([\w$%.]+?)\s*<\s*\d+\s*>", name):
                sc.prefixes[mm.group(1)] = w
            else:
                sc.names[name] = Reg(f"{name}#{sc.number}")
                self.width[sc.names[name].name] = w

    def _variable(self, s: str, sc: _Scope) -> None:
        v = parse_declaration(s)
        short, v.name = v.name, f"{v.name}#{sc.number}"
        if v.space in ("local", "param"):  # a call's parameters live in local memory
            self.offsets[v.name] = -(-self.local_size // max(v.align, 8)) * max(v.align, 8)
            self.local_size = self.offsets[v.name] + v.size
            sc.names[short] = Sym("local", v.name)
        elif v.space == "shared":
            self._shared(v)
            sc.names[short] = Sym("shared", v.name)
        else:
            self.globals.append(v)
            sc.names[short] = Sym("global", v.name)

    def _body(self, f: Function, scopes: list[_Scope], end: str | None, depth: int) -> None:
        if depth > 20:
            raise PTXError("recursive calls are not supported")
        assert f.body is not None
        buf, open_braces, begin = "", 0, 0
        for m in re.finditer(r"[{};]|[^{};]+", f.body):
            tok = m.group()
            if tok == "{" and not buf.strip():
                scopes = [*scopes, self._scope()]
            elif tok == "}" and not open_braces:
                scopes = scopes[:-1]
            elif tok == ";":
                if s := " ".join(buf.split()):
                    line = bisect.bisect(self.module.newlines, f.start + begin) + 1
                    self._statement(Instruction(s, line), scopes, end, depth)
                buf = ""
            else:
                if not buf.strip():
                    buf, begin = "", m.start() + len(tok) - len(tok.lstrip())
                open_braces += (tok == "{") - (tok == "}")
                buf += tok
                while label := re.match(r"\s*([\w$]+)\s*:(?!:)\s*", buf):
                    self.labels[f"{label.group(1)}#{scopes[-1].number}"] = len(self.code)
                    buf, begin = buf[label.end() :], begin + label.end()

    def _statement(
        self, ins: Instruction, scopes: list[_Scope], end: str | None, depth: int
    ) -> None:
        s = ins.text
        if s.startswith(".branchtargets"):  # the list's label was recorded just before
            names = [f"{k.split('#')[0]}" for k, v in self.labels.items() if v == len(self.code)]
            for n in names:
                scopes[-1].names[n] = split_commas(s.split(None, 1)[1])
            return
        if s.startswith(".reg"):
            return self._registers(s, scopes[-1])
        if s.startswith((".shared", ".local", ".param", ".global", ".const", ".extern")):
            return self._variable(s, scopes[-1])
        if s.startswith("."):
            return
        if m := re.match(r"@(!?)\s*([\w$%.]+)\s+(.*)", s, re.DOTALL):
            guard = self._lookup(m.group(2), scopes)
            if guard is None:
                raise PTXError(f"unknown guard: {s}")
            ins.negated, ins.guard, s = m.group(1) == "!", guard.name, m.group(3)
        m = re.match(r"([a-zA-Z_][\w.:]*)\s*(.*)", s, re.DOTALL)
        if not m:
            raise PTXError(f"not understood: {s} (line {ins.line})")
        (ins.op, *ins.mods), rest = m.group(1).split("."), m.group(2)
        if ins.op == "call":
            return self._call(ins, rest, scopes, depth)
        if ins.op == "bra":
            ins.target = (rest.strip(), [sc.number for sc in scopes])
        elif ins.op == "ret" and end:
            ins.op, ins.target = "bra", end
        elif ins.op == "brx":
            index, table = split_commas(rest)
            ins.ops = [self._operand(index, scopes)]
            ins.target = (table, [sc.number for sc in scopes], scopes)
        else:
            ins.ops = [self._operand(o, scopes) for o in split_commas(rest)]
        self.code.append(ins)

    def _call(self, ins: Instruction, rest: str, scopes: list[_Scope], depth: int) -> None:
        parts = split_commas(rest)
        returns = split_commas(parts.pop(0)[1:-1]) if parts[0].startswith("(") else []
        name = parts[0]
        args = split_commas(parts[1][1:-1]) if len(parts) > 1 and parts[1][0] == "(" else []
        f = self.module.functions.get(name)
        if f is None or f.body is None:
            ins.target = name
            self.code.append(ins)
            return
        sc = self._scope()
        for formal, actual in [
            *zip(f.returns, returns, strict=False),
            *zip(f.params, args, strict=False),
        ]:
            key = formal.split()[-1] if ".reg" in formal else parse_declaration(formal).name
            sc.names[key] = self._lookup(actual, scopes)
        end, skip = f"$end#{sc.number}", f"$skip#{sc.number}"
        if ins.guard is not None:
            self.code.append(
                Instruction(
                    ins.text, ins.line, "bra", guard=ins.guard, negated=not ins.negated, target=skip
                )
            )
        self._body(f, [self._top, sc], end, depth + 1)
        self.labels[end] = self.labels[skip] = len(self.code)

    def branch(self, target: Any) -> int:
        """Index of the instruction that a label names, innermost scope first."""
        if isinstance(target, str):
            return self.labels[target]
        name, numbers = target[:2]
        for n in reversed(numbers):
            if f"{name}#{n}" in self.labels:
                return self.labels[f"{name}#{n}"]
        raise PTXError(f"unknown label {name}")

    def branch_table(self, target: Any) -> list[int]:
        """The instructions that a brx.idx may go to."""
        name, numbers, scopes = target
        labels = self._lookup(name, scopes)
        return [self.branch((label, numbers)) for label in labels]

    def _operand(self, s: str, scopes: list[_Scope]) -> Any:
        s = s.strip()
        if s.startswith("{"):
            return Vec(tuple(self._operand(x, scopes) for x in split_commas(s[1:-1])))
        if s.startswith("["):
            address = split_commas(s[1:-1])[0]
            m = re.match(r"(.+?)\s*([+-])\s*([+-]?\w+)$", address)
            if m and _INT.match(m.group(3)):
                value = int(m.group(3).rstrip("U"), 0) * (1 if m.group(2) == "+" else -1)
                return Mem(self._operand(m.group(1), scopes), value)
            return Mem(self._operand(address, scopes), 0)
        if s.startswith("!"):
            return Not(self._operand(s[1:], scopes))
        if "|" in s:
            a, b = s.split("|")
            return Pair(self._operand(a, scopes), self._operand(b, scopes))
        if s == "_":
            return Sink()
        if _INT.match(s):
            octal = re.match(r"[+-]?0\d+$", s)
            return Imm(int(s, 8) if octal else int(s.rstrip("U"), 0))
        if m := re.match(r"0[fFdD]([0-9a-fA-F]{8}(?:[0-9a-fA-F]{8})?)$", s):
            bits, w = int(m.group(1), 16), 4 * len(m.group(1))
            code = "f" if w == 32 else "d"
            value = struct.unpack("<" + code, bits.to_bytes(w // 8, "little"))[0]
            return Imm(value, bits, w)
        if re.match(r"-?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?$", s):
            return Imm(float(s), None, 64)
        if (r := self._lookup(s, scopes)) is not None:
            return r
        if s.startswith("%"):
            return Special(s[1:])
        if m := re.match(r"generic\(([\w$]+)\)$", s):
            return Sym("global", m.group(1))
        if s in self.module.functions:
            return Imm(0)
        if s == "WARP_SZ":
            return Imm(32)
        raise PTXError(f"operand {s!r}")

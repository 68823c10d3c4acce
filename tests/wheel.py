"""The MetaTrader5 package's Windows wheel, as a file: what it says of itself, without running its binary."""

import ast
import hashlib
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from gateway.simulated.constants import __version__ as PACKAGE
from tests.servers import need

CACHE = Path(__file__).parents[1] / ".cache" / "wheels"
WINDOWS = ("--platform", "win_amd64", "--python-version", "3.11")
PACKAGES = {
    "MetaTrader5": (PACKAGE, f"metatrader5-{PACKAGE}-cp311-cp311-win_amd64.whl", WINDOWS),
    "mt5linux": ("1.1.1", "mt5linux-1.1.1-py3-none-any.whl", ()),
}
SHA256 = {
    "MetaTrader5": "1e0fb5e43437f426be3e5aef614f6798a918377db4cdb380593a66d1908f918d",
    "mt5linux": "0165d82dfa64ab6decee017bd9fd335040d758cb339cbaa77421b700d8a035d3",
}


def download(name: str = "MetaTrader5") -> Path:
    """The wheel in the cache folder, fetched once. Skips the test where it cannot be had."""
    version, file, target = PACKAGES[name]
    path = CACHE / file
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
            command = [sys.executable, "-m", "pip", "download", f"{name}=={version}", "--no-deps", "--quiet", *target]
            done = subprocess.run([*command, "--only-binary=:all:", "--dest", fresh], capture_output=True, text=True)
            need(done.returncode == 0, f"the wheel of {name} {version} from the package index")
            (Path(fresh) / file).replace(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256[name], f"{path} is another wheel"
    return path


class Wheel:
    """Its constants from the Python source; its functions and structs from the tables in the binary."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.source = archive.read("MetaTrader5/__init__.py").decode()
            self._binary = archive.read("MetaTrader5/_core.cp311-win_amd64.pyd")
        self._base, self._sections = self._layout()

    @cached_property
    def constants(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in ast.parse(self.source).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if not name.startswith("_"):
                    found[name] = eval(compile(ast.Expression(node.value), name, "eval"))  # numbers joined by |
        return found

    @cached_property
    def about(self) -> dict[str, str]:
        """`__version__`, `__author__`: what programs print first."""
        return dict(re.findall(r"^(__\w+__)\s*=\s*'(.*?)'", self.source, re.MULTILINE))

    @cached_property
    def helpers(self) -> set[str]:
        """Functions written in Python."""
        return {node.name for node in ast.parse(self.source).body if isinstance(node, ast.FunctionDef)}

    @cached_property
    def functions(self) -> dict[str, int]:
        """Name → flags of each PyMethodDef {name, function, flags, doc} of the module."""
        found = {}
        for offset in self._offsets():
            name, function, flags, doc = struct.unpack_from("<QQQQ", self._binary, offset)
            text = self._text(name)
            if text.isidentifier() and 0 < flags < 8 and self._offset(function) and self._text(doc):
                found[text] = flags
        del found["_asdict"]  # of the structs
        return found

    @cached_property
    def structs(self) -> dict[str, tuple[str, ...]]:
        """Name → fields of each PyStructSequence_Desc {name, doc, fields, count}."""
        found = {}
        for offset in self._offsets():
            name, doc, fields, count = struct.unpack_from("<QQQQ", self._binary, offset)
            text, at = self._text(name), self._offset(fields)
            if text.isidentifier() and self._text(doc) and at and 0 < count < 200:
                names = tuple(self._field(at, index) for index in range(count))
                if all(one.isidentifier() for one in names) and not self._field(at, count):
                    found[text] = names
        return found

    def _field(self, table: int, index: int) -> str:
        return self._text(struct.unpack_from("<Q", self._binary, table + 16 * index)[0])

    # ---- the file's layout: a portable executable of 64 bits

    def _layout(self) -> tuple[int, list[tuple[int, int, int]]]:
        header = struct.unpack_from("<I", self._binary, 0x3C)[0]
        count, optional = (struct.unpack_from("<H", self._binary, header + at)[0] for at in (6, 20))
        base = struct.unpack_from("<Q", self._binary, header + 48)[0]
        sections = []
        for number in range(count):
            at = header + 24 + optional + 40 * number
            _, address, size, offset = struct.unpack_from("<IIII", self._binary, at + 8)
            sections.append((address, size, offset))
        return base, sections

    def _offset(self, pointer: int) -> int:
        """Where in the file the pointer points to; 0 if nowhere."""
        for address, size, offset in self._sections:
            if address <= pointer - self._base < address + size:
                return offset + pointer - self._base - address
        return 0

    def _text(self, pointer: int) -> str:
        start = self._offset(pointer)
        text = self._binary[start : self._binary.index(b"\0", start)] if start else b""
        found = text.decode() if text.isascii() else ""
        return found if found.replace("\n", " ").isprintable() else ""

    def _offsets(self) -> Iterator[int]:
        for _, size, offset in self._sections[1:]:  # not the code
            yield from range(offset, offset + size - 32, 8)

    def run_over(self, core: Any) -> dict[str, Any]:
        """The names of the package, its Python part executed with `core` in the binary's place."""
        import types

        package = types.ModuleType("MetaTrader5")
        package.__path__ = []
        before = {name: sys.modules.get(name) for name in ("MetaTrader5", "MetaTrader5._core")}
        sys.modules |= {"MetaTrader5": package, "MetaTrader5._core": core}
        try:
            names: dict[str, Any] = {"__name__": "MetaTrader5", "__package__": "MetaTrader5"}
            exec(compile(self.source, str(self.path), "exec"), names)
        finally:
            for name, module in before.items():
                sys.modules.pop(name)
                if module is not None:
                    sys.modules[name] = module
        return names

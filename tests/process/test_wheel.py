"""What `pip install .` puts on a machine: one package and its metadata, a command, and a library with types.

Skipped where pip, or a setuptools that can build it, is not installed; with REQUIRE_WHEEL=1 that is a failure.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile
from email import message_from_bytes
from pathlib import Path

import gateway
import gateway.inference
import inference
from tests.support import ROOT, process_environment

SETUPTOOLS_MIN = 77
BUILD_S = 240.0
LEFT_OUT = shutil.ignore_patterns(".git", "__pycache__", "build", "dist", "*.egg-info", ".*_cache", ".venv", ".env")


def missing() -> str:
    """What building a wheel here lacks; "" for nothing."""
    if importlib.util.find_spec("pip") is None:
        return "pip"
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    return "" if int(version.partition(".")[0]) >= SETUPTOOLS_MIN else f"setuptools {SETUPTOOLS_MIN} or later"


class SameTest(unittest.TestCase):
    def test_a_checkouts_inference_has_the_objects_of_the_packages(self) -> None:
        self.assertEqual(inference.__all__, gateway.inference.__all__)
        for name in inference.__all__:
            self.assertIs(getattr(inference, name), getattr(gateway.inference, name))


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_WHEEL") == "1", "REQUIRE_WHEEL=1 is not set")
    def test_a_wheel_can_be_built(self) -> None:
        self.assertEqual(missing(), "", "REQUIRE_WHEEL=1, but this is missing")


@unittest.skipIf(missing(), f"{missing()} is not installed")
class WheelTest(unittest.TestCase):
    site: Path

    @classmethod
    def setUpClass(cls) -> None:
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.directory = Path(directory.name)
        source = cls.directory / "source"  # a build leaves folders behind
        shutil.copytree(ROOT, source, ignore=LEFT_OUT)
        wheels = cls.directory / "wheels"
        cls.pip("wheel", str(source), "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels))
        (cls.wheel,) = wheels.iterdir()
        cls.site = cls.directory / "site"
        cls.pip("install", "--no-deps", "--no-index", "--target", str(cls.site), str(cls.wheel))
        (cls.directory / "empty").mkdir()

    @classmethod
    def pip(cls, *arguments: str) -> None:
        ran = subprocess.run(
            [sys.executable, "-m", "pip", *arguments],
            cwd=cls.directory,
            env=process_environment({"PIP_DISABLE_PIP_VERSION_CHECK": 1, "PIP_NO_INPUT": 1}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_S,
        )
        assert ran.returncode == 0, ran.stdout.decode("utf-8", "replace")

    def run_installed(self, *command: str) -> str:
        """What a command of the installed copy prints, in an empty folder."""
        ran = subprocess.run(
            command,
            cwd=self.directory / "empty",
            env=process_environment({"PYTHONPATH": self.site}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=BUILD_S,
        )
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        return ran.stdout

    def test_nothing_but_the_package_and_its_metadata_is_at_the_top(self) -> None:
        with zipfile.ZipFile(self.wheel) as wheel:
            names = wheel.namelist()
        own = f"bare_inference_gateway-{gateway.__version__}.dist-info"
        self.assertEqual({name.partition("/")[0] for name in names}, {"gateway", own})
        in_source = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "gateway").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        self.assertEqual({name for name in names if name.startswith("gateway/")}, in_source)
        self.assertIn("gateway/py.typed", names)

    def test_the_metadata_is_this_projects(self) -> None:
        with zipfile.ZipFile(self.wheel) as wheel:
            own = f"bare_inference_gateway-{gateway.__version__}.dist-info"
            metadata = message_from_bytes(wheel.read(f"{own}/METADATA"))
            scripts = wheel.read(f"{own}/entry_points.txt").decode()
        self.assertEqual((metadata["Name"], metadata["Version"]), ("bare-inference-gateway", gateway.__version__))
        self.assertEqual((metadata["Requires-Python"], metadata["Provides-Extra"]), (">=3.9", "jwt"))
        self.assertEqual(scripts.split(), ["[console_scripts]", "inference-gateway", "=", "gateway.cli:run"])

    def test_the_library_is_in_the_package(self) -> None:
        code = "import gateway.inference as i; from gateway.inference import InferenceFactory; print(i.__file__)"
        printed = self.run_installed(sys.executable, "-c", code)
        self.assertEqual(Path(printed.strip()).resolve(), (self.site / "gateway" / "inference.py").resolve())
        code = "import importlib.util as u; print(u.find_spec('main'), u.find_spec('inference'), u.find_spec('tests'))"
        self.assertEqual(self.run_installed(sys.executable, "-c", code).split(), ["None"] * 3)

    def test_the_package_runs(self) -> None:
        printed = self.run_installed(sys.executable, "-m", "gateway", "--version")
        self.assertEqual(printed.strip(), gateway.__version__)

    def test_the_command_runs_in_an_empty_folder(self) -> None:
        command = str(self.site / "bin" / "inference-gateway")
        self.assertIn("address: http://127.0.0.1:8080", self.run_installed(command, "check"))
        self.assertIn("usage: inference-gateway keys ", self.run_installed(command, "keys", "--help"))


if __name__ == "__main__":
    unittest.main()

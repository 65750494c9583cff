"""The wheel, installed elsewhere, holds the recipes."""

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_installs_with_its_recipes(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    tracked = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in tracked:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path),
        cwd=source,
    )  # fmt: skip
    wheel = next(tmp_path.glob("*.whl"))
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "--no-deps", str(wheel), cwd=tmp_path)
    # names are imported when they are asked for, so the dependencies can stay outside
    code = "import fastntk_sk; print(*fastntk_sk.list_recipes())"
    names = run(python, "-c", code, cwd=tmp_path).split()
    expected = {
        name for file in (ROOT / "zoo").glob("*.toml") for name in tomllib.loads(file.read_text())
    }
    assert set(names) == expected
    listing = run(python, "-m", "pip", "show", "-f", "fastntk_sk", cwd=tmp_path)
    for name in ("py.typed", "publishing/card.md", "zoo/built_in.toml"):
        assert f"fastntk_sk/{name}" in listing

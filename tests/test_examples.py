"""The quickstart and the README run."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_quickstart(tmp_path):
    picture = tmp_path / "forget.png"
    command = [sys.executable, "-W", "error", "-W", "ignore::FutureWarning"]
    command += [str(ROOT / "examples/quickstart/plot_forget.py"), "--out", str(picture)]
    done = subprocess.run(
        [*command, "--rows", "300", "--pixels", "32"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "this deletion is exact for the linearised model" in done.stdout
    difference = float(re.search(r"difference to the refit: (\S+)", done.stdout)[1])
    assert difference < 1e-5
    assert picture.stat().st_size > 10_000


def test_readme_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    namespace: dict = {}
    exec(blocks[1], namespace)
    assert namespace["clf"].n_samples_learned_ == 147
    # the first block is the same calls on images that the reader has
    assert re.findall(r"clf\.(\w+)", blocks[0]) == ["unlearn", "predict"]


def test_the_quickstart_is_short():
    assert len((ROOT / "examples/quickstart/plot_forget.py").read_text().splitlines()) < 120

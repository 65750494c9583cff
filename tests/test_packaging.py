"""What is built and published: the wheel, its page, and what must name the same version."""

import re
import subprocess
import sys
import tomllib
import venv
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import yaml
from huggingface_hub import SpaceCard

from fastntk_sk import __version__

ROOT = Path(__file__).parents[1]


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_files_name_this_version_and_the_same_repository():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    changes = (ROOT / "CHANGELOG.md").read_text()
    requirements = (ROOT / "fastntk_sk/demo/requirements.txt").read_text()
    assert citation["version"] == __version__
    assert f"## [{__version__}] - {citation['date-released']}" in changes
    assert f"fastntk_sk[demo] @ git+{citation['repository-code']}@v{__version__}" in requirements
    assert f"Source = {citation['repository-code']}\n" in (ROOT / "setup.cfg").read_text()


def test_the_card_of_the_space():
    card = SpaceCard.load(ROOT / "fastntk_sk/demo/README.md")
    assert card.data.sdk == "gradio"
    assert (ROOT / "fastntk_sk/demo" / card.data.app_file).is_file()
    assert f":: {card.data.python_version}\n" in (ROOT / "setup.cfg").read_text()
    assert card.data.sdk_version.startswith("6.")  # as the extra [demo] asks
    assert len(card.data.short_description) <= 60
    assert card.data.models == ["timm/tf_efficientnet_lite0.in1k"]
    assert set(re.findall(r"\b\d{4}\.\d{4,5}\b", str(card))) == {"2312.14923"}


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
        sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), cwd=source,
    )  # fmt: skip
    wheel = next(tmp_path.glob(f"fastntk_sk-{__version__}-*.whl"))  # built from the sdist
    with ZipFile(wheel) as files:
        metadata = message_from_bytes(files.read(f"fastntk_sk-{__version__}.dist-info/METADATA"))
    page = metadata.get_payload()
    assert page.startswith("# fastntk_sk")
    assert re.findall(r"\]\((?!https://|#)|(?:href|src|srcset)=\"(?!https://|#)", page) == []
    assert f"/blob/v{__version__}/zoo/README.md" in page
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

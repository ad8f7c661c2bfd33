"""Every chapter's examples: the notebooks' cells, run as nbdev runs them (cells marked eval: false are left to `omnijet run`)."""
import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

NBS = Path(__file__).parent.parent / "nbs"
CODE = "import sys; from pathlib import Path; from nbdev.test import test_nb; sys.exit(not test_nb(Path(sys.argv[1]))[0])"


@pytest.mark.parametrize("chapter", sorted(p.stem for p in NBS.glob("*.ipynb")))
def test_chapter(chapter):
    done = subprocess.run([sys.executable, "-c", CODE, f"{chapter}.ipynb"], cwd=NBS, capture_output=True, text=True,
                          env={**os.environ, "TQDM_DISABLE": "1", "OMNIJET_HEADLESS": "1"})
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


def test_no_notebook_outputs_larger_than_3_MB():
    for path in NBS.glob("*.ipynb"):
        assert path.stat().st_size < 3e6, path


def test_pictures_in_the_notebooks_are_whole():
    for path in NBS.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    Image.open(io.BytesIO(base64.b64decode("".join(output["data"]["image/png"])))).load()

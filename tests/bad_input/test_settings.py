"""Settings that are wrong."""

import subprocess
import sys

import pytest


def test_a_wrong_key_in_a_config(refused, tiny_run):
    config = tiny_run(**{"batch_size: 4": "batch_sise: 4"})
    sentence = refused("fit", "--config", config, code=2, max_lines=8)
    assert "tiny.yaml" in sentence
    assert "batch_sise" in sentence
    assert "batch_size" in sentence


def test_an_unknown_plugin_in_a_config(refused, tiny_run):
    sentence = refused("fit", "--config", tiny_run(**{"class_path: dino": "class_path: dinno"}), code=2, max_lines=8)
    assert "tiny.yaml" in sentence
    assert "dinno" in sentence
    assert "dino" in sentence.replace("dinno", "")


@pytest.mark.slow
def test_a_wrong_key_is_found_without_torch(tiny_run, tmp_path):
    config = tiny_run(**{"batch_size: 4": "batch_sise: 4"})
    code = (
        "import sys\nfrom morphem.cli import main\n"
        f"assert main(['fit', '--config', {config!r}]) == 2\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

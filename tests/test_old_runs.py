"""Runs of version 0.1.0 still open: weights, training state, report and metrics."""
import pytest
import shutil
import subprocess
import sys
import torch
from memory_vlm.clip import MemoryCLIP
from memory_vlm.learner import make_learner
from memory_vlm.schema import Config
from memory_vlm.study import collect
from memory_vlm.training.callbacks import ResumeCallback
from memory_vlm.training.logging import read_metrics
from memory_vlm.training.run_dir import open_trained
from omegaconf import OmegaConf
from pathlib import Path

ROOT = Path(__file__).parent.parent
# first features, computed with version 0.1.0
IMAGE = [0.3339010, 0.0121869, -0.0290252, -0.1518743, 0.0728780, -0.0725131]
TEXT = [0.1387151, -0.0706315, -0.1102334, -0.4408669, 0.3094221, -0.0985203]
SCALE = 14.2752724


@pytest.fixture
def run(tmp_path):
    "A copy of a run of version 0.1.0, whose memory tokens are 16 wide in a ViT 32 wide."
    return Path(shutil.copytree(ROOT/'tests/data/run_0_1_0', tmp_path/'old'))


def checkpoint_of(run): return next((run/'checkpoints').iterdir())


def check_features(model):
    images = torch.arange(3 * 64 * 64, dtype=torch.float64).mul(0.37).sin().float().reshape(1, 3, 64, 64)
    with torch.no_grad(): image, text, scale = model.eval()(images, model.tokenize(['a red apple']))
    torch.testing.assert_close(image[0, :6], torch.tensor(IMAGE), rtol=0, atol=1e-5)
    torch.testing.assert_close(text[0, :6], torch.tensor(TEXT), rtol=0, atol=1e-5)
    assert abs(scale.item() - SCALE) < 1e-4
    assert 'visual.memory.proj.weight' in model.state_dict() and 'visual.memory.lift.weight' not in model.state_dict()


def test_features(run):
    loaded = open_trained(run)
    check_features(loaded.model)
    assert loaded.metrics['t2i/R@10'] == pytest.approx(10 / 22)
    check_features(MemoryCLIP.from_pretrained(checkpoint_of(run)))
    # by models.pretrained, which compares names
    check_features(MemoryCLIP.from_pretrained(checkpoint_of(run)/'model.safetensors'))


def test_another_image_size(run):
    model = MemoryCLIP.from_pretrained(checkpoint_of(run), image_size=96)
    assert model.encode_image(torch.zeros(1, 3, 96, 96)).shape == (1, 32)


def test_resume(run):
    cfg = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(run/'config.yaml'))
    learn = make_learner(cfg)
    with learn.no_bar(), learn.no_logging():
        learn.fit_schedule(cfg.training.scheduler, cbs=ResumeCallback(checkpoint_of(run), learn))
    assert learn.train_iter == 8 # the last step of this run: the whole state was read
    check_features(learn.model)


def test_report(run):
    command = [sys.executable, '-m', 'memory_vlm', 'report', str(run)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, encoding='utf-8', timeout=300)
    assert out.returncode == 0, out.stderr
    assert 'memory' in out.stdout


def test_old_column_names_are_read(run):
    "A study and a report read the metrics of a run whose columns had other names."
    table = read_metrics(run)
    assert table.samples_per_second.notna().any() and 'pairs_per_second' not in table
    assert collect(run.parent).step_ms.notna().all()

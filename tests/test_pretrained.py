"""Models that exist, at their full size and on the command line. Nothing is downloaded: weights are random, built by open_clip."""
import json
import open_clip
import pytest
import subprocess
import sys
import timm
import torch
from memory_vlm.clip import MemoryCLIP
from memory_vlm.core import UserError
from memory_vlm.models.pretrained_config import clip_config
from omegaconf import OmegaConf
from pathlib import Path
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ViT-B-16', 'ViT-B-32-quickgelu', 'ViT-B-16-SigLIP', 'vit_medium_patch16_gap_256', 'ViT-M-16-alt'])
def test_features_of_the_original(name, tmp_path):
    torch.manual_seed(0)
    theirs = open_clip.create_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path/'weights.pt')
    ours = MemoryCLIP.from_pretrained(f'open_clip:{name}/{tmp_path}/weights.pt')
    images, ids = torch.randn(2, 3, ours.cfg.image_size, ours.cfg.image_size), torch.randint(1, ours.cfg.text.vocab_size, (2, ours.cfg.text.max_len))
    with torch.inference_mode():
        torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(ids), theirs.encode_text(ids), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    ours.add_memory('registers')
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + 4 * ours.cfg.embed_dim


@pytest.mark.slow
@pytest.mark.parametrize('name', ['vit_base_patch16_clip_224', 'vit_small_patch14_dinov2'])
def test_towers_of_timm(name, tmp_path):
    torch.manual_seed(0)
    classes = 512 if '_clip_' in name else 0
    theirs = timm.create_model(name, num_classes=classes).eval()
    save_file(theirs.state_dict(), tmp_path/'weights.safetensors')
    ours = MemoryCLIP.from_pretrained(f'timm:{name}/{tmp_path}/weights.safetensors')
    images = torch.randn(1, 3, ours.cfg.image_size, ours.cfg.image_size)
    with torch.inference_mode(): torch.testing.assert_close(ours.encode_image(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_every_model_of_open_clip_is_opened_or_refused():
    opened = set()
    for name in open_clip.list_models():
        try: clip_config(name, open_clip.get_model_config(name), {})
        except UserError as e: assert f'{name} cannot be opened: ' in str(e)
        else: opened.add(name)
    assert len(opened) >= 70
    families = 'ViT-B-16', 'ViT-B-32-quickgelu', 'ViT-SO400M-14-SigLIP2', 'ViT-bigG-14-CLIPA', 'ViT-H-14-worldwide', 'MobileCLIP2-L-14'
    assert opened.issuperset(families) and not opened & {'RN50', 'coca_ViT-L-14', 'EVA02-B-16', 'ViTamin-B', 'convnext_base', 'PE-Core-B-16'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A small CLIP as open_clip's `push_to_hub` writes it."
    folder = tmp_path_factory.mktemp('small')
    cfg = dict(embed_dim=32, quick_gelu=True, vision_cfg=dict(image_size=64, layers=3, width=64, head_width=32, patch_size=16),
               text_cfg=dict(context_length=32, width=32, heads=2, layers=2))
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg={})))
    torch.manual_seed(0)
    save_file(open_clip.model.CLIP(**cfg).state_dict(), folder/'open_clip_model.safetensors')
    return folder


def train(*args):
    "Run train.py to its end."
    data = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.batch_size=16']
    return subprocess.run([sys.executable, 'train.py', '--config-name=quickstart', 'model=base', *data, *args], cwd=ROOT, capture_output=True, text=True)


def test_a_frozen_model_gets_memory(folder, tmp_path):
    run = train(f'model.pretrained={folder}', 'model/memory=registers', 'training.freeze=all-memory', 'training.memory_lr_scale=10',
                'training.max_steps=3', f'training.run_dir={tmp_path}/run')
    assert run.returncode == 0, run.stderr
    cfg = OmegaConf.load(tmp_path/'run/config.yaml')
    assert (cfg.model.embed_dim, cfg.model.depth, cfg.model.memory.dim, cfg.model.vit_kwargs.act_layer) == (64, 3, 64, 'quick_gelu')
    checkpoint = next(p for p in (tmp_path/'run/checkpoints').iterdir() if (p/'model.safetensors').exists())
    before, after = MemoryCLIP.from_pretrained(folder, memory='registers').state_dict(), MemoryCLIP.from_pretrained(checkpoint).state_dict()
    assert {n for n in before if not before[n].equal(after[n])} == {'visual.memory.tokens'}


MISTAKES = {
    'model.depth=5': 'model.depth=5 disagrees with',
    'training.freeze=all-memry': "did you mean 'memory'",
    'training.freeze=all': 'leaves nothing to train',
    'model.image_size=60': 'model.image_size=60 is not a multiple of model.patch_size=16',
    'model.pretrained=open_clip:ViT-B16/openai': "did you mean 'ViT-B-16'",
}


@pytest.mark.slow
@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_are_one_line(mistake, folder, tmp_path):
    pretrained = [] if 'pretrained' in mistake else [f'model.pretrained={folder}']
    run = train(*pretrained, mistake, f'training.run_dir={tmp_path}/run')
    lines = [line for line in run.stderr.splitlines() if MISTAKES[mistake] in line]
    assert run.returncode == 2 and len(lines) == 1 and 'Traceback' not in run.stderr, run.stderr
    assert not (tmp_path/'run').exists()

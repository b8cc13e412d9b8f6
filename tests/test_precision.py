"""Every memory mechanism trains and evaluates in bf16; test_half_precision.py (slow) compares all values with fp32."""
import pytest
import torch
import torch.nn.functional as F
from memory_vlm.attention import capture
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.interp.intervene import intervene
from memory_vlm.memory import UPDATES, check_memory
from memory_vlm.tokens import POSITIONS

SMALL = ['model=tiny', 'model.embed_dim=32', 'model.depth=2', 'model.num_heads=2', 'model.text.embed_dim=16',
         'model.text.depth=1', 'model.text.num_heads=2', 'model.text.max_len=8', 'model.memory.num_memory_tokens=3']
# (weights converted instead of autocast, training, recomputed blocks)
CASES = [(False, True, False), (False, False, False), (False, True, True), (True, True, True),
         (True, False, False)]
IMAGES = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(1, 100, (2, 8), generator=torch.Generator().manual_seed(0))


def mechanisms():
    "Return the configurations of all valid mechanisms."
    for update in UPDATES:
        for position in POSITIONS:
            cfg = compose([*SMALL, f'model.memory.memory_update={update}', f'model.memory.memory_position={position}'])
            try: check_memory(cfg.model)
            except UserError: continue
            yield pytest.param(cfg.model, id=f'{update}-{position}')


def seeded(cfg):
    torch.manual_seed(0)
    return MemoryCLIP.from_config(cfg)


@pytest.mark.parametrize('cfg', list(mechanisms()))
def test_mechanism_runs_in_bf16(cfg, dtype=torch.bfloat16):
    expected = seeded(cfg).eval()(IMAGES, IDS)[0]
    for convert, training, recompute in CASES:
        model = seeded(cfg).train(training)
        model.set_grad_checkpointing(recompute)
        if convert: model.to(dtype)
        with torch.autocast('cpu', dtype, enabled=not convert):
            image, text, scale = model(IMAGES, IDS)
            sum(x.float().square().sum() for x in (image @ text.T, scale)).backward()
            with torch.no_grad(), capture(model) as maps: model.eval().encode_image(IMAGES)
            with torch.no_grad(), intervene(model, 'mask'): masked = model.encode_image(IMAGES)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        assert model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
        assert len(maps.layers) == 2 and masked.isfinite().all()
        if not training: assert F.cosine_similarity(image.float(), expected, dim=-1).min() > 0.99

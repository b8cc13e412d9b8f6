"""Interventions on images of another size and with patch dropout."""
import pytest
import torch
from memory_vlm.interp.intervene import intervene, memory_positions
from memory_vlm.vision import tiny_vit

MECHANISMS = [dict(memory_position=p) for p in ('prepend', 'append')]
MECHANISMS += [dict(memory_position=p, memory_update='static') for p in ('kv', 'kv_protected', 'kv_head')]


@pytest.mark.parametrize('kw', MECHANISMS, ids=lambda kw: kw['memory_position'])
def test_other_image_sizes(kw):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 96, 32)
    vit, fixed = (tiny_vit(num_memory_tokens=4, dynamic_img_size=d, **kw).eval() for d in (True, False))
    for memory in vit.memory_tokens(): torch.nn.init.normal_(memory.tokens)
    fixed.load_state_dict(vit.state_dict())
    fixed.set_input_size((96, 32))
    for kind in ('mask', 'zero'):
        for tokens in (None, [1, 2]):
            with intervene(vit, kind, tokens): found = vit(x)
            with intervene(fixed, kind, tokens): torch.testing.assert_close(found, fixed(x))
            assert not torch.allclose(found, vit(x))


@pytest.mark.parametrize('kw', MECHANISMS[:2], ids=lambda kw: kw['memory_position'])
def test_patch_dropout(kw):
    vit, seen = tiny_vit(num_memory_tokens=4, patch_drop_rate=0.5, **kw).train(), []
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), memory_positions(vit, lambda layer, memory: seen.append(memory)): vit(x)
    assert torch.equal(seen[0], vit.memory().expand(2, -1, -1))
    def masked(seed):
        torch.manual_seed(seed)
        with torch.no_grad(), intervene(vit, 'mask'): return vit(x)
    first = masked(1)
    for memory in vit.memory_tokens(): torch.nn.init.normal_(memory.tokens)
    torch.testing.assert_close(masked(1), first) # hidden memory has no effect

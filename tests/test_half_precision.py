"""Each memory mechanism in each precision: outputs and gradients of fp32 in training, eval, capture, interventions."""
import open_clip
import pytest
import torch
import torch.nn.functional as F
from contextlib import nullcontext
from copy import deepcopy
from memory_vlm.ablation import ablate
from memory_vlm.attention import capture
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.evaluation.validation import encode, evaluate
from memory_vlm.interp.attribution import attribute, rollout
from memory_vlm.interp.intervene import KINDS, intervene, record_states
from memory_vlm.interp.text_lens import text_lens
from memory_vlm.memory import UPDATES
from memory_vlm.vision import tiny_vit
from memory_vlm.widgets.atlas import _nearest_words

MECHANISMS = {f'{u}-{p}': dict(memory_update=u, memory_position=p) for u in UPDATES for p in ('prepend', 'append')}
MECHANISMS |= {p: dict(memory_update='static', memory_position=p) for p in ('kv', 'kv_protected', 'kv_head')}
MECHANISMS |= {'narrow': dict(memory_update='gated', memory_dim=16),
               'narrow-kv': dict(memory_update='static', memory_position='kv', memory_dim=16),
               'average': dict(memory_update='gated', global_pool='avg'),
               'map': dict(memory_update='gated', global_pool='map', class_token=False),
               'dropped': dict(memory_update='gated', patch_drop_rate=0.5, drop_path_rate=0.1),
               'output-gate': dict(attn_gate='elementwise'), 'redrawn': dict(memory_init='redrawn'),
               'off': dict(num_memory_tokens=0)}
DTYPES = dict(bf16=(torch.bfloat16, 0.03), fp16=(torch.float16, 0.005))
EACH_DTYPE = pytest.mark.parametrize('dtype', ['bf16', 'fp16'])
pytestmark = pytest.mark.slow
torch.manual_seed(0)
IMAGES = torch.randn(4, 3, 64, 64)


def each_mechanism(*without):
    return pytest.mark.parametrize('mechanism', [m for m in MECHANISMS if m not in without])


def vit_of(mechanism):
    "Return a tower whose memory is as large as its patches, so that it matters."
    vit = tiny_vit(**dict(num_memory_tokens=4, depth=2) | MECHANISMS[mechanism])
    for memory in vit.memory_tokens(): memory.tokens.data.normal_(generator=torch.Generator().manual_seed(0))
    for part in (p for block in vit.blocks for p in (block.update, block.attn)):
        if getattr(part, 'gate', None) is not None: part.gate.weight.data.normal_(std=0.02)
    return vit


def step(vit, images):
    "Return the output and the gradients of one step."
    torch.manual_seed(1)
    vit.zero_grad()
    out = vit(images)
    (256 * out.float().square().sum()).backward() # small gradients underflow in fp16
    return out.detach().float(), {n: p.grad.float() for n, p in vit.named_parameters() if p.grad is not None}


def assert_near(one, other, tolerance):
    (out, grads), (reference, expected) = one, other
    assert (out - reference).norm() <= tolerance * reference.norm()
    assert grads.keys() == expected.keys()
    for n, g in expected.items():
        # the bias of keys has no gradient but rounding
        assert (grads[n] - g).norm() <= 5 * tolerance * max(g.norm(), 1e-2 * max(map(torch.norm, expected.values()))), n


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('training', [True, False])
@EACH_DTYPE
@each_mechanism()
def test_autocast(mechanism, dtype, training, checkpointing):
    vit, (dtype, tolerance) = vit_of(mechanism).train(training), DTYPES[dtype]
    vit.set_grad_checkpointing(checkpointing)
    twin = deepcopy(vit)
    with torch.autocast('cpu', dtype): low = step(vit, IMAGES)
    assert_near(low, step(twin, IMAGES), tolerance)
    for n, w in twin.state_dict().items(): # `ema`: the bank is updated alike
        torch.testing.assert_close(vit.state_dict()[n], w, rtol=0, atol=tolerance)


@pytest.mark.parametrize('training', [True, False])
@EACH_DTYPE
@each_mechanism()
def test_weights_of_half_precision(mechanism, dtype, training):
    vit, (dtype, tolerance) = vit_of(mechanism).train(training), DTYPES[dtype]
    reference = step(deepcopy(vit).to(dtype).float(), IMAGES.to(dtype).float())
    assert_near(step(vit.to(dtype), IMAGES.to(dtype)), reference, tolerance)
    with torch.inference_mode(): assert vit.eval()(IMAGES.to(dtype)).dtype == dtype
    with torch.autocast('cpu', dtype): assert step(vit, IMAGES.to(dtype))[0].isfinite().all()
    assert {w.dtype for w in vit.state_dict().values()} == {dtype}


@pytest.mark.parametrize('half', [False, True])
@EACH_DTYPE
@each_mechanism('off', 'dropped')
def test_capture_and_interventions(mechanism, dtype, half):
    vit, (dtype, tolerance) = vit_of(mechanism).eval(), DTYPES[dtype]
    images, low, context = IMAGES, deepcopy(vit), torch.autocast('cpu', dtype)
    if half: images, low, context = IMAGES.to(dtype), low.to(dtype), nullcontext()

    def record(vit, images):
        with capture(vit, full=True, norms=True, states=True, values=True) as maps, torch.no_grad(): out = vit(images)
        maps.settle()
        return [out, maps.full, maps.to_memory, maps.norms, maps.memory_states, maps.value_norms]
    with context, torch.no_grad(): assert torch.equal(low(images), record(low, images)[0])
    with context: found = record(low, images)
    for ours, reference in zip(found, record(vit, IMAGES)):
        if reference.numel(): assert (ours.float() - reference).norm() <= 3 * tolerance * reference.norm()

    def intervened(vit, images, kind, train=False):
        with record_states(vit) as states, torch.no_grad(): vit(images)
        with intervene(vit, kind, states=states):
            return step(vit.train(train), images)[0] if train else vit(images).detach().float()
    for kind in KINDS:
        for train in (False, True):
            try: reference = intervened(deepcopy(vit), IMAGES, kind, train)
            except UserError: continue # this kind would change nothing
            with context: found = intervened(deepcopy(low), images, kind, train)
            assert (found - reference).norm() <= 4 * tolerance * reference.norm(), (kind, train)


@pytest.mark.parametrize('dtype', [None, 'bf16', 'fp16'])
@pytest.mark.parametrize('preset', ['default', 'gated', 'cross_attention', 'ema_bank', 'learnable_memory',
                                    'learnable_memory_protected', 'memory_transformer', 'persistent', 'registers',
                                    'off', 'jumbo', 'random_registers'])
def test_steps_of_a_clip(preset, dtype):
    model = MemoryCLIP.from_config(compose(['model=tiny', f'model/memory={preset}']).model).train()
    ids, images = torch.randint(1, 49000, (4, 12)), torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    for parts in (1, 2):
        model.num_parts = parts
        model.zero_grad()
        with torch.autocast('cpu', DTYPES[dtype][0]) if dtype else nullcontext():
            image, text, scale, *_ = model(images, ids)
            F.cross_entropy(scale * image @ text.T, torch.arange(4)).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('half', [False, True])
@EACH_DTYPE
@pytest.mark.parametrize('preset', ['default', 'gated', 'cross_attention', 'ema_bank', 'learnable_memory',
                                    'learnable_memory_protected'])
def test_attribution_and_rollout(preset, dtype, half):
    model = MemoryCLIP.from_config(compose(['model=tiny', f'model/memory={preset}']).model).eval()
    ids, dtype, low = torch.randint(1, 49000, (4, 12)), DTYPES[dtype][0], deepcopy(model)
    images, context = (IMAGES.to(dtype), nullcontext()) if half else (IMAGES, torch.autocast('cpu', dtype))
    if half: low.to(dtype)

    def explain(model, images):
        with capture(model, full=True) as maps, torch.no_grad(): model.encode_image(images)
        layout = model.visual.layout
        return rollout(maps.full, layout).heatmap, attribute(model, images, ids).heads
    with context: found = explain(low, images)
    for ours, reference in zip(found, explain(model, IMAGES)):
        assert (ours - reference).norm() <= 0.05 * reference.norm()


@EACH_DTYPE
@pytest.mark.parametrize('preset', ['late_interaction', 'caption_mixed'])
def test_weights_of_half_precision_are_read_and_scored(preset, dtype):
    model = MemoryCLIP.from_config(compose(['model=tiny', 'model.depth=2', f'model/memory={preset}']).model).eval()
    half, tolerance = deepcopy(model).to(DTYPES[dtype][0]), 10 * DTYPES[dtype][1]
    words, images = ['red', 'blue', 'a cat', 'a dog'], torch.randint(0, 256, (12, 3, 64, 64), dtype=torch.uint8)
    batches = [(images[:4], model.tokenize(words))]
    losses = [evaluate(m, batches)['val_loss'] for m in (model, half)]
    assert abs(losses[0] - losses[1]) <= tolerance
    lenses = [text_lens(m, [images], words).errors for m in (model, half)]
    assert (lenses[0] - lenses[1]).abs()['cosine, logit lens'].max() <= tolerance
    states = torch.randn(3, 128)
    (a, b) = ([{w: c for w, c in row} for row in _nearest_words(m, states, words, 4)] for m in (model, half))
    assert max(abs(x[w] - y[w]) for x, y in zip(a, b) for w in x) <= tolerance


@EACH_DTYPE
def test_images_of_float32_and_bytes_for_weights_of_half_precision(dtype):
    torch.manual_seed(0)
    size = dict(image_size=32, layers=1, width=32, head_width=16, patch_size=8)
    theirs = open_clip.model.CustomTextCLIP(32, size, dict(context_length=8, width=32, heads=2, layers=1)).eval()
    ours = MemoryCLIP.from_config(compose(['model=tiny', 'model.image_size=32', 'model.depth=1']).model).eval()
    pixels, ids = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8), torch.randint(1, 49000, (40, 8))
    mean, std = (torch.tensor(x)[:, None, None] for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    images, dtype = (pixels / 255 - mean) / std, DTYPES[dtype][0]
    for model in (theirs, ours):
        expected, half = F.normalize(model.encode_image(images), dim=-1), deepcopy(model).to(dtype)
        for given in (images, images.to(dtype), pixels):
            assert F.cosine_similarity(encode(half, [(given, ids)])[0], expected).min() > 0.999
            assert ablate(half, [(given, ids)], ['zero'], part='cls').num_images == 40

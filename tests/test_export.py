"Exported encoders give the features of the model for any batch size, as ONNX, with torch.export and in open_clip."
import json
import open_clip
import pytest
import torch
import torch.nn.functional as F
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.data.loaders import make_loader
from memory_vlm.data.sources import open_source
from memory_vlm.evaluation.validation import encode
from memory_vlm.hub.onnx import _write_card, example_input, export_encoders, run_onnx
from memory_vlm.hub.open_clip import save_open_clip

SMALL = ['model=tiny', 'model.depth=2', 'model.text.depth=1', 'model.text.max_len=16']
PRESETS = ('off', 'registers', 'learnable_memory', 'learnable_memory_protected', 'persistent', 'gated',
           'cross_attention', 'ema_bank', 'jumbo', 'random_registers', 'read_mean', 'late_interaction', 'caption_mixed',
           'registers model.vit_kwargs.attn_gate=headwise')


@pytest.mark.slow
# ONNX uses torch.export too
@pytest.mark.parametrize('form,preset', [*(('onnx', p) for p in PRESETS), ('torch', 'registers')])
def test_encoders_give_the_features_of_the_model(form, preset, tmp_path, monkeypatch):
    if form == 'onnx': pytest.importorskip('onnxruntime', reason="pip install 'memory-vlm[export]'")
    model = MemoryCLIP.from_config(compose([*SMALL, *f'model/memory={preset}'.split()]).model).eval()
    found = export_encoders(model, tmp_path, form) # compares batches of 1, 2 and 5
    assert set(found) == {'image', 'text'} and max(found.values()) < 1e-5
    facts = json.loads((tmp_path/'export.json').read_text())
    assert facts['largest_difference'] == found and facts['image']['shape'] == ['batch', 3, 64, 64]
    monkeypatch.chdir(tmp_path)
    images, ids = example_input(model, 'image', 9), example_input(model, 'text', 9)
    given = (images, ids) if form == 'torch' else (images.numpy(), ids.numpy())
    ran = dict(zip(('images', 'ids'), given))
    exec((tmp_path/'README.md').read_text().split('```python')[1].split('```')[0], ran) # the example in the card
    with torch.no_grad():
        vectors = model.encode_image(images, True, vectors=model.visual.many_vectors)
        logits = model.logit_scale.exp() * model.similarity(vectors, model.encode_text(ids, True))
    assert torch.allclose(torch.as_tensor(ran['logits']), logits, atol=1e-3)
    if form == 'onnx': assert run_onnx(tmp_path/'image.onnx', example_input(model, 'image', 9)).shape == vectors.shape


@pytest.mark.parametrize('preset', ['registers', 'late_interaction', 'caption_mixed'])
@pytest.mark.parametrize('loss', ['clip', 'siglip'])
def test_the_example_of_the_card_computes_the_logits(loss, preset, tmp_path):
    words = f'model.contrastive.loss_type={loss}', f'model/memory={preset}'
    model = MemoryCLIP.from_config(compose([*SMALL, *words]).model).eval()
    if preset == 'caption_mixed': model.query.data *= 40 # exp of the products leaves float32
    with torch.no_grad():
        images = model.encode_image(example_input(model, 'image', 3), True, vectors=model.visual.many_vectors)
        texts = model.encode_text(example_input(model, 'text', 4), True)
        expected = model.logit_scale.exp() * model.similarity(images, texts)
        if loss == 'siglip': expected += model.logit_bias
        texts, bias = model.with_query(texts), model.logit_bias
    _write_card(model, tmp_path, 'torch', {})
    code = (tmp_path/'README.md').read_text().split('```python')[1].split('```')[0].split('int64')[1].partition('\n')[2]
    ran = dict(image_features=images, text_features=texts, facts=dict(
        logit_scale=model.logit_scale.exp().item(), logit_bias=None if bias is None else bias.item()))
    exec(code, ran)
    assert torch.allclose(torch.as_tensor(ran['logits']), expected, atol=1e-4)


@pytest.mark.parametrize('preset', ['off', 'registers', 'gated', 'read_mean'])
def test_open_clip_gives_the_features_of_the_model(preset, tmp_path):
    original = MemoryCLIP.from_config(compose(['model=tiny', f'model/memory={preset}']).model)
    save_open_clip(original, tmp_path)
    source = open_source('scenes:tiny', 'valid')
    # as CLIP_benchmark's `load_open_clip`
    model, _, transform = open_clip.create_model_and_transforms(f'local-dir:{tmp_path}')
    tokenizer = open_clip.get_tokenizer(f'local-dir:{tmp_path}')
    inputs, captions = torch.stack([transform(source.image(i)) for i in range(8)]), [source.captions(i)[0]
            for i in range(8)]
    with torch.no_grad():
        found = [F.normalize(f, dim=-1)
                 for f in (model.eval().encode_image(inputs), model.encode_text(tokenizer(captions)))]
    images, texts, owners, _ = encode(original, make_loader(source, image_size=64, batch_size=8, train=False))
    first = [owners.tolist().index(i) for i in range(8)]
    torch.testing.assert_close(found[0], images[:8], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1], texts[first], atol=1e-5, rtol=0)

"Every mechanism as ONNX and through torch.export: any batch, and the features of the model."
import json
import pytest
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.export import example, export, run_onnx

SMALL = ['model=tiny', 'model.depth=2', 'model.text.depth=1', 'model.text.max_len=16']
PRESETS = ('off', 'registers', 'learnable_memory', 'learnable_memory_protected', 'persistent', 'gated', 'cross_attention', 'ema_bank')


@pytest.mark.slow
@pytest.mark.parametrize('form,preset', [*(('onnx', p) for p in PRESETS), ('torch', 'registers')]) # ONNX goes through torch.export too
def test_features_are_those_of_the_model(form, preset, tmp_path):
    if form == 'onnx': pytest.importorskip('onnxruntime', reason="pip install 'memory-vlm[export]'")
    model = MemoryCLIP.from_config(compose([*SMALL, f'model/memory={preset}']).model)
    found = export(model, tmp_path, form) # compares batches of 1, 2 and 5
    assert set(found) == {'image', 'text'} and max(found.values()) < 1e-5
    said = json.loads((tmp_path/'export.json').read_text())
    assert said['largest_difference'] == found and said['image']['shape'] == ['batch', 3, 64, 64]
    if form == 'onnx': assert run_onnx(tmp_path/'image.onnx', example(model, 'image', 9)).shape == (9, 128)

"""Masks of images of one's own, from the files to the rows of `memory_vlm report` and `eval`."""
import json
import numpy as np
import pytest
import torch
from memory_vlm.cli import main
from memory_vlm.clip import MemoryCLIP
from memory_vlm.config import compose
from memory_vlm.evaluation.models import _open_with_data
from memory_vlm.interp.features import memory_features
from PIL import Image

COLORS = np.array([(250, 250, 250), (200, 30, 30), (30, 30, 200)], np.uint8)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Images of 96 x 64 whose classes have a color each, on the grid of patches that the central crop leaves."
    folder = tmp_path_factory.mktemp('photos')
    for name in ('images', 'masks'): (folder/name).mkdir()
    table = dict(images=[], annotations=[], categories=[dict(id=3, name='cat'), dict(id=9, name='dog')])
    for i in range(8):
        classes = np.zeros((64, 96), np.uint8)
        left, top = 24 + 8 * (i % 4), 8 * (i % 3)
        table['images'].append(dict(id=i, file_name=f'{i}.png', height=64, width=96))
        for number, (x, y, width, height) in ((1, (left, top, 16, 24)), (2, (64 - left % 32, 40, 16, 16))):
            classes[y:y + height, x:x + width] = number
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            table['annotations'].append(dict(image_id=i, category_id=(3, 9)[number - 1], bbox=[x, y, width, height],
                                             area=width * height, segmentation=[polygon]))
        Image.fromarray(COLORS[classes]).save(folder/'images'/f'{i}.png')
        (folder/'images'/f'{i}.txt').write_text(f'cat and dog {i}')
        Image.fromarray(classes).save(folder/'masks'/f'{i}.png')
    (folder/'instances.json').write_text(json.dumps(table))
    MemoryCLIP.from_config(compose(['model=tiny', 'model.patch_size=8']).model).save_pretrained(folder/'model')
    return folder


def measure(photos, masks):
    loaded = _open_with_data(str(photos/'model'), str(photos/'images'), 'valid')
    return memory_features(loaded.model, loaded.valid_dl, masks=masks)


def test_masks_follow_the_crop(photos):
    found, png = (measure(photos, photos/m) for m in ('instances.json', 'masks'))
    aligned = found['dense pixels of the patch'].mean() # the color is the class; upsampling of patches rounds corners
    assert aligned > .8 and found['dense position'].mean() < .4
    for name in ('dense probe', 'dense pixels of the patch'): torch.testing.assert_close(found[name], png[name])
    assert 'lost LOST' in found and 'cls pointing' in found and 'lost LOST' not in png
    shifted = photos/'shifted'
    shifted.mkdir()
    for path in (photos/'masks').iterdir():
        Image.fromarray(np.roll(np.asarray(Image.open(path)), 4, 1)).save(shifted/path.name)
    assert measure(photos, shifted)['dense pixels of the patch'].mean() < aligned - .1


def test_report_and_eval_take_masks(photos, capsys):
    words = [str(photos/'model'), '--data', str(photos/'images'), '--masks', str(photos/'instances.json'), '--json']
    assert main(['report', *words]) == 0
    rows = {r['name']: r for r in json.loads(capsys.readouterr().out)['memory']['rows']}
    assert {'LOST, CorLoc', 'dense probe, mIoU', 'CLS, pointing'} <= set(rows)
    assert 'pixels of the patch get 0.83' in rows['dense probe, mIoU']['note']
    assert main(['eval', words[0], words[2], *words[3:]]) == 0
    scores = json.loads(capsys.readouterr().out)['models'][0]['scores']
    for score, row in (('dense/mIoU', 'dense probe, mIoU'), ('lost/CorLoc', 'LOST, CorLoc')):
        for k in ('value', 'low', 'high'): assert scores[score][k] == pytest.approx(rows[row][k], abs=1e-5)
    assert main(['report', *words[:3], '--masks', str(photos/'nowhere')]) == 2
    assert "nowhere' does not exist; give a folder of PNG files" in capsys.readouterr().err
    assert main(['report', *words[:3], '--masks', 'objects']) == 2
    assert 'needs data that knows its objects' in capsys.readouterr().err

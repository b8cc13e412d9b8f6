"""A command that cannot be carried out ends with status 2 and a line that says what to write."""
import pytest
from memory_vlm.cli import main
from PIL import Image

SETTINGS = ['training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny', 'training.max_steps=1',
            'training.batch_size=8', 'training.preflight=false', 'model.depth=1', 'model.text.depth=1',
            'training.logging.tensorboard=false']
# words: a part of the message
REFUSED = {
    'chek': "did you mean 'check'?",
    'check nowhere': 'nowhere',
    'check': 'required',
    'check pairs.csv --image_key x': "'--image_key' is not an option (did you mean '--image-key'?)",
    'check pairs.csv --image-key photo': '--image-key',
    'check training.data.train_path=pairs.csv training.data.image_key=photo': "no column 'photo'",
    'check a --seconds x': 'invalid',
    'check . --import mine.py': "'mine.py' does not exist",
    'check photos --sheet pairs.csv/x.png': 'cannot be written',
    'check photos --sheet x.foo': "'x.foo' is no image file",
    'eval only': 'required: data',
    'eval fitted --data photos': 'data is written without a name. Example: memory_vlm eval',
    'report nowhere/at/all': 'nowhere',
    'export nowhere/at/all x': 'nowhere',
    'export fitted pairs.csv/x': 'cannot be written',
    'study smal.yaml': "did you mean 'small.yaml'",
    'search fitted photos x --top -3': '--top=-3 must be at least 1',
    'search fitted photos x --index photos': "'photos' is a folder",
    'make-shards photos new --per-shard 0': '--per-shard=0',
    'config training.epoch=3': "did you mean 'training.epochs'?",
    'config model.memory.memory_update=leaky': 'after --import FILE',
    'config --config-name=quick': 'quickstart',
    'fit trainig.epochs=3': "did you mean 'training.epochs'?",
    'fit --import': 'needs a Python file',
    'fit --config-name=quick': 'quickstart',
    'fit --epochs=3': 'write training.epochs=3',
    'fit --batch-size 8': 'write training.batch_size=VALUE',
    'fit --data photos': 'settings are written KEY=VALUE',
    'fit training.data.train_path=scenes:tiny training.run_dir=pairs.csv --config-name=quickstart':
        "'pairs.csv/config.yaml' cannot be written",
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A folder with a run, photos, a table and a study."
    at = tmp_path_factory.mktemp('commands')
    main(['fit', '--config-name=quickstart', *SETTINGS, f'training.run_dir={at}/fitted'])
    (at/'photos').mkdir()
    for i in range(2):
        Image.new('RGB', (32, 32)).save(at/f'photos/{i}.png')
        (at/f'photos/{i}.txt').write_text(f'photo {i}')
    (at/'pairs.csv').write_text('image,caption\na.jpg,x\n')
    (at/'small.yaml').write_text('seeds: 1\n')
    return at


@pytest.mark.parametrize('words', REFUSED)
def test_command_is_refused_with_what_to_write(folder, monkeypatch, capsys, words):
    monkeypatch.chdir(folder)
    try: status = main(words.split())
    except SystemExit as e: status = e.code # argparse
    assert status == 2 and REFUSED[words] in capsys.readouterr().err

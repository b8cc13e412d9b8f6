"""Recipes in configs/experiment: each composes, its header states results, and those that run here take two steps."""
import pandas as pd
import pytest
import re
import subprocess
import sys
from memory_vlm.config import compose
from pathlib import Path
from PIL import Image

ROOT = Path(__file__).parent.parent
RECIPES = {p.stem: p for p in sorted((ROOT/'configs'/'experiment').glob('*.yaml')) if p.stem != 'default'}
RESULTS = pd.read_csv(ROOT/'benchmarks'/'results'/'recipes.csv')


def header(recipe):
    "Return the header comment of a recipe as one line."
    lines = RECIPES[recipe].read_text().splitlines()[1:]
    return ' '.join(l.removeprefix('#').strip()
                    for l in lines[:next(i for i, l in enumerate(lines) if not l.startswith('#'))])


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipe_composes_and_names_its_command(recipe):
    cfg = compose([f'experiment={recipe}'])
    assert cfg.training.logging.name == recipe
    assert f'train.py experiment={recipe}' in header(recipe)


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipe_numbers_equal_the_stored_runs(recipe):
    runs, said = RESULTS[RESULTS.recipe == recipe], header(recipe)
    if 'NOT RUN HERE' in said:
        assert runs.empty, 'it was run: the header should say what came of it'
        return
    recall, seconds = 100 * runs['i2t/R@1'], runs.cpu_seconds.mean()
    assert f'{recall.mean():.1f} % ± {recall.std():.1f} %' in said
    assert f'{runs.valid.iloc[0]} images' in said and f'{100 * runs.chance.iloc[0]:.1f} %)' in said
    assert f'of {len(runs)} seeds' in said and runs.seed.is_unique
    assert abs(int(re.search(r'after (\d+) s', said)[1]) - seconds) < 1


@pytest.fixture
def stamps(tmp_path):
    "Make a folder of images in sub-folders, each with a text file next to it."
    for i in range(24):
        image = tmp_path/'stamps'/f'kind{i % 3}'/f'{i}.png'
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGBA', (40 + i, 60), (10 * i, 99, 200, 255)).save(image)
        image.with_suffix('.txt').write_text(f'A stamp, the {i}th.\nes.utf8=Un sello.\n')
    return tmp_path/'stamps'


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['scenes_easy', 'scenes_hard', 'gated_registers', 'stamps'])
def test_takes_two_steps(recipe, tmp_path, stamps):
    data = [f'training.data.train_path={stamps}'] if recipe == 'stamps' else ['training.data.val_path=scenes:tiny']
    done = subprocess.run([sys.executable, 'train.py', f'experiment={recipe}', *data, 'training.max_steps=2',
                           'training.batch_size=4',
                           f'training.run_dir={tmp_path}/run'], cwd=ROOT, capture_output=True, encoding='utf-8')
    assert done.returncode == 0, done.stderr
    metrics = pd.read_csv(tmp_path/'run'/'metrics.csv')
    assert metrics.step.max() == 2 and metrics['i2t/R@1'].notna().any()
    assert (tmp_path/'run'/'DONE').exists()

"Reports, ablations, exports and panels take a live learner, a run folder, and a model with data."
import pytest
from memory_vlm.ablation import ablate
from memory_vlm.config import compose
from memory_vlm.core import UserError
from memory_vlm.hub.publish import share
from memory_vlm.report import memory_report
from memory_vlm.run import fit
from memory_vlm.training.run_dir import as_model
from memory_vlm.viz.page import write_report_page
from memory_vlm.widgets.explorer import AttentionExplorer


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('loaded')/'run'
    words = [f'training.run_dir={folder}', 'training.max_steps=2', 'training.batch_size=16',
             'training.data.train_path=scenes:tiny', 'training.data.val_path=scenes:tiny',
             'training.logging.tensorboard=false', 'training.preflight=false', 'model.depth=2', 'model.text.depth=1']
    return fit(compose(words, config_name='quickstart')), folder


@pytest.fixture(params=['learner', 'result of fit', 'run folder', 'text', 'loaded'])
def given(request, run):
    result, folder = run
    return {'learner': result.learn, 'result of fit': result, 'run folder': folder, 'text': str(folder),
            'loaded': as_model(folder)}[request.param]


def test_every_consumer_accepts_every_form_of_a_run(given, run, tmp_path):
    assert len(memory_report(given, num_images=8).sentences) == 3
    assert ablate(given, kinds=('mask',)).changes.index[0] == ('mask', 'all')
    assert 'Attention of memory tokens' in write_report_page(run[1], given).read_text()
    assert (share(given, tmp_path/'exported', look=False)/'config.json').exists()
    explorer = AttentionExplorer(given, other=run[1])
    assert [side.layers for side in explorer.sides] == [2, 2] and explorer.sides[1].name == run[1].name


def test_a_model_needs_data(run, tmp_path):
    model, dl = run[0].learn.model, as_model(run[1]).valid_dl
    assert len(memory_report(model, dl, num_images=8).sentences) == 3
    assert ablate(model, dl, kinds=('mask',)).changes.index[0] == ('mask', 'all')
    assert AttentionExplorer(model, dl).main.layers == 2
    assert (share(model, tmp_path/'exported')/'config.json').exists() # an export needs none
    for call in (memory_report, ablate, AttentionExplorer):
        with pytest.raises(UserError): call(model)
    with pytest.raises(UserError, match='is not part of a run'): as_model(model).valid_dl
    with pytest.raises(UserError, match='int is not a model'): as_model(3)


def test_loaded_model_is_not_modified(run):
    loaded = as_model(run[1])
    with pytest.raises(AttributeError): loaded.model = None
    assert loaded.valid_dl is loaded.valid_dl

"""Fixtures of the browser tests. Without Chromium these tests are skipped, or fail if NEED_CHROMIUM is set."""
import lab as labs
import os
import pytest

# Kernels that nobody uses any more take half a gigabyte each
END_KERNEL = 'async () => { await window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown(); }'


@pytest.fixture(scope='session')
def chromium():
    if labs.CHROMIUM is None:
        why = 'no Chromium was found: install it (Debian: sh tools/debian.sh chromium)'
        pytest.fail(why) if os.environ.get('NEED_CHROMIUM') else pytest.skip(why)
    with labs.browser() as b: yield b


@pytest.fixture(scope='session')
def lab(tmp_path_factory, chromium):
    server = labs.Lab(tmp_path_factory.mktemp('lab'))
    yield server
    server.close()


@pytest.fixture
def page(chromium):
    "Return a page of 1200 x 900 pixels that fails the test on a script error."
    page, failures = chromium.new_page(viewport=dict(width=1200, height=900)), []
    page.on('pageerror', lambda e: failures.append(str(e)))
    page.set_default_timeout(15_000)
    yield page
    page.evaluate(END_KERNEL)
    page.close()
    assert not failures, failures


@pytest.fixture
def offline_page(chromium):
    "Return a page without network access."
    context = chromium.new_context(viewport=dict(width=1200, height=900), offline=True)
    page, failures = context.new_page(), []
    page.on('pageerror', lambda e: failures.append(str(e)))
    page.on('request', lambda r: r.url.startswith(('file:', 'data:', 'blob:')) or failures.append(f'asked for {r.url}'))
    yield page
    context.close()
    assert not failures, failures

// The explorer of a saved page: images and maps lie in the page, and the state stands in the link.

function start(id) {
  const root = document.getElementById(id), data = JSON.parse(document.getElementById(`${id}-data`).textContent), first = data.images[0];
  const models = first.sides.map(({ name, layers, heads }) => ({ name, layers, heads }));
  const linked = () => { try { return JSON.parse(decodeURIComponent(location.hash.slice(1))); } catch { return {}; } };
  const host = {
    count: data.images.length, models, state: { ...data.state, ...linked() },
    want: (i) => queueMicrotask(() => { const image = data.images[i]; explorer.take({ caption: image.captions[0] || "" }); explorer.show(image); }),
    thumbs: (ids) => queueMicrotask(() => explorer.thumbs(ids, ids.map((i) => ({ index: i, src: data.images[i].src, caption: data.images[i].captions[0] || "" })))),
    set: () => { if (location.protocol !== "about:") history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(explorer.state()))}`); },
  };
  const explorer = makeExplorer(root, host);
  try { // inside the output of `keep`, the frame is as high as the page
    const frame = window.frameElement;
    if (frame) new ResizeObserver(() => { frame.style.height = `${document.body.offsetHeight + 24}px`; }).observe(document.body);
  } catch { /* a frame of another origin */ }
  return explorer;
}

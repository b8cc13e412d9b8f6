// Cards drawn by Python. A button with data-image sends what it stands for: {image, and other data-...}.

function render({ model, el }) {
  const style = el.appendChild(document.createElement("style")), body = el.appendChild(document.createElement("div"));
  style.textContent = `
.mvlm-cards button { display: inline-block; padding: 0; border: 2px solid transparent; border-radius: 4px; background: none; line-height: 0; cursor: pointer; font: inherit; color: inherit; }
.mvlm-cards button:is(:hover, :focus-visible) { border-color: #1a85d6; outline: none; }`;
  body.className = "mvlm-cards";
  body.style.color = "var(--jp-ui-font-color1, inherit)";
  const draw = () => { body.innerHTML = model.get("value"); };
  body.onclick = (e) => {
    const data = e.target.closest("button[data-image]")?.dataset;
    if (data) model.send(Object.fromEntries(Object.entries(data).map(([name, v]) => [name, Number(v)])));
  };
  draw();
  model.on("change:value", draw);
  return () => model.off(null, null, null);
}

export default { render };

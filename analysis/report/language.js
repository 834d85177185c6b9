"use strict";
/* Of a language model: the layers' fidelity and spectra, and the eigenvectors of each token. */
function showLanguage(found) {
  show("language");
  // What the page reads with stands first: a narrow window does not hide it.
  const methods = [found.method, ...Object.keys(found.together).filter((name) => name !== found.method)], count = found.layers.length;
  const runs = [{ name: found.name, layers: found.layers, together: found.together, method: found.method }, ...found.others];
  const rise = (value) => (value >= 0.00005 ? "+" : "") + fixed(value, 4);
  const cells = (gains) => [fixed(gains.r2), rise(gains.loss_rise)];
  const rows = runs.flatMap((run) => [
    ...run.layers.map((layer, i) => [...(runs.length > 1 ? [run.name] : []), String(i + 1), ...methods.flatMap((name) => cells(layer.gains[name]))]),
    [...(runs.length > 1 ? [run.name] : []), "all", ...methods.flatMap((name) => ["", rise(run.together[name])])],
  ]);
  table("layer-fidelity", [...(runs.length > 1 ? ["run"] : []), "layer", ...methods.flatMap((name) => [`R², ${name}`, "rise, nats"])], rows, count, "total");

  const colors = ["accent", "second", "grey", "positive", "negative"];
  const ids = found.layers.map((_, layer) => `plot-decay-${layer}`); // all are there before one is drawn: they share the width
  $("decay-plots").append(...ids.map((id, layer) => element("div", { class: "plot", id, role: "img", "aria-label": `Size of eigenvalues by rank, layer ${layer + 1}` })));
  ids.forEach((id, layer) => {
    plot(id, () => [
      runs.filter((run) => layer < run.layers.length).map((run, i) => line(run.name, run.layers[layer].decay.map((_, k) => k + 1), run.layers[layer].decay, colors[i % colors.length], { line: { dash: i < colors.length ? "solid" : "dot" } })),
      layout("rank by |λ|", "|λ| / |λ₁|", { y: { range: [0, 1.03] }, rest: { title: { text: `layer ${layer + 1}`, font: { size: 12 }, x: 0.98, xanchor: "right" } } }),
    ]);
  });
  table("rank-table", ["run", ...found.layers.map((_, i) => `effective rank, layer ${i + 1}`)],
    runs.map((run) => [run.name, ...run.layers.map((layer) => fixed(layer.participation_rank, 1))]));

  if (found.samples.length) {
    show("samples-block");
    $("sample-texts").append(...found.samples.map((text) => element("div", { class: "sample" }, text)));
  }
  tokenFinder(found);
}

function tokenFinder(found) {
  const visible = (token) => spaced(found.vocabulary[token]);
  // A letter of several bytes may be split between tokens: bytes are put together before they are read.
  const encoder = new TextEncoder(), decoder = new TextDecoder();
  const spelled = (tokens) => ended(decoder.decode(new Uint8Array(tokens.flatMap((token) => found.bytes[token] || [...encoder.encode(found.vocabulary[token])]))));
  const word = found.tokens.findIndex((token) => /^ [a-z]{4,}$/i.test(found.vocabulary[token]));
  let layer = found.layers.length - 1, place = Math.max(0, word);

  function vector(rank) {
    const value = found.values[layer][place][rank], [ahead, behind] = found.likes[layer][place][rank];
    const chips = (tokens) => tokens.map((token) => element("code", {}, visible(token)));
    const contexts = found.places[layer][place][rank].map((at) => {
      const start = Math.max(at - 12, Math.floor(at / found.length) * found.length);
      const end = Math.min(at + 6, (Math.floor(at / found.length) + 1) * found.length); // the window's, beyond which is another text
      return element("li", {}, spelled(found.text.slice(start, at)), element("mark", {}, visible(found.text[at])), element("span", { class: "soft" }, ` → ${visible(found.next[at])}`), element("span", { class: "soft" }, spelled(found.text.slice(at + 2, end))));
    });
    return element("div", { class: value > 0 ? "vector" : "vector negative" },
      element("h4", {}, `Eigenvector ${rank + 1}, λ = ${signed(value)}: ${value > 0 ? "for" : "against"} the token`),
      element("div", { class: "ends" }, element("div", {}, element("span", { class: "soft" }, "one end "), ...chips(ahead)), element("div", {}, element("span", { class: "soft" }, "other end "), ...chips(behind))),
      element("p", { class: "note" }, "Where it responds most in the held-out text (the token read, then the next one):"), element("ol", {}, ...contexts));
  }
  function draw() {
    $("token-title").textContent = `“${visible(found.tokens[place])}”, layer ${layer + 1}: R² of this direction ${fixed(found.r2[layer][place])}`;
    $("token-vectors").replaceChildren(...found.values[layer][place].map((_, rank) => vector(rank)));
    [...$("layer-tabs").children].forEach((tab, i) => tab.setAttribute("aria-selected", i === layer));
    [...$("token-list").children].forEach((option) => option.setAttribute("aria-selected", Number(option.dataset.place) === place));
  }
  function list() {
    const wanted = $("token-search").value.toLowerCase().trim();
    const hits = found.tokens.map((token, i) => [token, i]).filter(([token]) => found.vocabulary[token].toLowerCase().includes(wanted));
    $("token-list").replaceChildren(...hits.map(([token, i]) => element("button", { type: "button", role: "option", "data-place": i, onclick: () => { place = i; draw(); } }, visible(token))));
    const absent = wanted && !hits.length && found.vocabulary.some((token) => token.toLowerCase().includes(wanted));
    $("token-note").textContent = hits.length ? `${hits.length} of the ${found.tokens.length} most frequent tokens` : absent ? "a token, but not among the most frequent, which are shown" : "no such token";
    // An exact word is chosen at once; otherwise the choice stays.
    const exact = hits.find(([token]) => found.vocabulary[token].trim().toLowerCase() === wanted);
    if (wanted && (exact || hits.length)) place = (exact || hits[0])[1];
    draw();
  }
  found.layers.forEach((_, i) => $("layer-tabs").append(element("button", { type: "button", role: "tab", "aria-selected": false, onclick: () => { layer = i; draw(); } }, `layer ${i + 1}`)));
  $("token-search").addEventListener("input", list);
  list();
}
if (data.language) showLanguage(data.language);

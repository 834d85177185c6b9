"use strict";
/* Of a pretrained language model: a map of its layers, and the eigenvectors of words in each. */
function showModel(model) {
  show("model");
  const colors = ["accent", "second", "grey", "positive", "negative"];
  const numbers = model.layers.map((row) => row.layer);
  const maps = [{ name: model.name, layers: model.layers, all: model.all, loss: model.loss }, ...model.others];
  const label2 = (map, name) => (maps.length > 1 ? `${map.name}, ${name}` : name);
  const curves = (value, hidden = () => ({})) => maps.flatMap((map, m) => Object.keys(map.all).map((name, i) =>
    line(label2(map, name), map.layers.map((row) => row.layer), map.layers.map((row) => value(row.readings[name])), colors[i % colors.length], { line: { dash: m ? "dot" : "solid" }, trace: hidden(name) })));
  const least = Math.min(0.5, ...maps.flatMap((map) => map.layers.flatMap((row) => Object.values(row.readings).map((reading) => reading.r2))));
  // Beside other readings the identity is so far off that nothing else could be told apart: a click shows it.
  const far = (name) => (name === "identity" && model.readings.length > 1 ? { visible: "legendonly" } : {});
  plot("plot-map-r2", () => [curves((reading) => reading.r2), layout("layer", "R² of what the GLU adds", { y: { range: [Math.max(-0.2, least - 0.03), 1.02] } })]);
  plot("plot-map-rise", () => [curves((reading) => reading.loss_rise, far), layout("layer", "rise of the loss, nats", {})]);

  const rise = (value) => (value >= 0.00005 ? "+" : "") + fixed(value, 4);
  const heads = ["layer", ...model.readings.flatMap((name) => [`R², ${name}`, "rise, nats"]), "sinks", "effective rank", "linear part", "with pairs"];
  const rows = model.layers.map((row) => [String(row.layer), ...model.readings.flatMap((name) => [fixed(row.readings[name].r2), rise(row.readings[name].loss_rise)]),
    String(row.sinks), fixed(row.effective_rank, 0), percent(row.linear_share), percent(row.share)]);
  rows.push(["all", ...model.readings.flatMap((name) => ["", rise(model.all[name])]), "", "", "", ""]);
  table("model-table", heads, rows, model.layers.length, "total");

  const short = (text) => ([...text].length > 24 ? [...text].slice(0, 23).join("") + "…" : text);
  const visible = (token) => short(spaced(model.vocabulary[token] ?? ""));
  const chips = (tokens) => tokens.map((token) => element("code", {}, visible(token)));
  let layer = Math.floor(model.layers.length / 2), place = Math.max(0, model.tokens.findIndex((token) => /^ [a-z]{4,}$/i.test(model.vocabulary[token])));

  function ends(likes) {
    return element("div", { class: "ends" },
      element("div", {}, element("span", { class: "soft" }, "one end "), ...chips(likes[0])),
      element("div", {}, element("span", { class: "soft" }, "other end "), ...chips(likes[1])));
  }
  function vector(rank) {
    const value = model.values[layer][place][rank];
    const items = model.places[layer][place][rank].map((at) => {
      const [before, token, after] = model.contexts[at];
      return element("li", {}, ended(before), element("mark", {}, ended(token).replace(/\n/g, "↵")), element("span", { class: "soft" }, ended(after)));
    });
    return element("div", { class: value > 0 ? "vector" : "vector negative" },
      element("h4", {}, `Eigenvector ${rank + 1}, λ = ${signed(value)}: ${value > 0 ? "for" : "against"} the token`), ends(model.likes[layer][place][rank]),
      element("p", { class: "note" }, "Where it responds most in the held-out text:"), element("ol", {}, ...items));
  }
  function linear() {
    const [up, down] = model.linear[layer][place];
    return element("div", { class: "vector" }, element("h4", {}, "Linear part"),
      element("div", { class: "ends" }, element("div", {}, element("span", { class: "soft" }, "for the token "), ...chips(up)), element("div", {}, element("span", { class: "soft" }, "against it "), ...chips(down))));
  }
  function drawWord() {
    const shares = model.layers.map((_, i) => model.shares[i].map((part) => part[place]));
    return Plotly.react("plot-word", [["R² of the reading", "accent"], ["linear part alone", "grey"], [`with ${model.values[0][0].length} pairs`, "second"]].map(([name, color], i) => line(name, numbers, shares.map((part) => part[i]), color)),
      layout("layer", "share of what is added", { y: { range: [-0.1, 1.03] } }), options);
  }
  function draw() {
    const [r2, own, both] = model.shares[layer].map((part) => part[place]);
    $("model-word").textContent = `“${visible(model.tokens[place])}”, layer ${numbers[layer]}`;
    $("model-figures").textContent = `R² along this direction ${fixed(r2)}; of what is added, the linear part alone explains ${percent(own)}, with the pairs shown ${percent(both)}.`;
    $("model-vectors").replaceChildren(linear(), ...model.values[layer][place].map((_, rank) => vector(rank)));
    [...$("model-layers").children].forEach((tab, i) => tab.setAttribute("aria-selected", i === layer));
    [...$("model-list").children].forEach((option) => option.setAttribute("aria-selected", Number(option.dataset.place) === place));
    drawWord();
  }
  function list() {
    const wanted = $("model-search").value.toLowerCase();
    const bare = wanted.trim();
    const hits = model.tokens.map((token, i) => [token, i]).filter(([token]) => model.vocabulary[token].toLowerCase().includes(wanted));
    $("model-list").replaceChildren(...hits.map(([token, i]) => element("button", { type: "button", role: "option", "data-place": i, onclick: () => { place = i; draw(); } }, visible(token))));
    const others = bare && !hits.length ? model.vocabulary.filter((word) => word.toLowerCase().includes(wanted)).slice(0, 12) : [];
    $("model-note").textContent = hits.length ? `${hits.length} of the ${model.tokens.length} words that were computed` : others.length ? "tokens, but not computed here" : bare ? "no such token" : "";
    $("model-more").hidden = !others.length;
    if (others.length) {
      $("model-others").replaceChildren(...others.map((word) => element("code", {}, word.replace(/ /g, "·"))));
      const exact = others.find((word) => word.trim().toLowerCase() === bare) ?? others[0];
      $("model-command").textContent = `${model.command} --words '${exact.replace(/'/g, "'\\''")}'`;
    }
    const exact = hits.find(([token]) => model.vocabulary[token].trim().toLowerCase() === bare);
    if (bare && (exact || hits.length)) place = (exact || hits[0])[1];
    draw();
  }
  $("model-layers").append(...numbers.map((number, i) => element("button", { type: "button", role: "tab", "aria-selected": false, onclick: () => { layer = i; draw(); } }, String(number))));
  $("model-search").addEventListener("input", list);
  show("plot-word");
  list();
  plots.push(drawWord);
}
if (data.model) showModel(data.model);

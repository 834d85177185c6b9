"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const at = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const show = (id) => { $(id).hidden = false; };
const plots = []; // functions that draw, called again when the colours change

function fixed(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return (Object.is(Math.round(value * 10 ** digits), -0) ? 0 : value).toFixed(digits).replace("-", "−");
}
const ended = (text) => text.replace(/<\|endoftext\|>|<\/s>|<\|im_end\|>/g, "⟨end⟩");
const spaced = (text) => ended(text).replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥");
const percent = (value) => (value === null ? "–" : fixed(100 * value, 1) + " %");
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toPrecision(3);
const mean = (list) => {
  const known = list.filter((value) => value !== null);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
};

function bytes(text, signedBytes) {
  const raw = atob(text), array = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
  return signedBytes ? new Int8Array(array.buffer) : array;
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/* Heads explain themselves; of the first column only where it holds terms and no names. */
function table(id, heads, rows, chosen, mark = "chosen", terms = false) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, worded(text))));
  const body = rows.map((row, i) => element("tr", i === chosen ? { class: mark } : {}, ...row.map((cell, place) => element("td", {}, terms && !place ? worded(cell) : cell))));
  $(id).replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
}

/* Pictures. Eigenvectors are int8 in the scale of their own largest entry; images are uint8. */
function paint(canvas, pixels, [height, width, channels], diverging) {
  canvas.width = width; canvas.height = height;
  canvas.classList.toggle("strip", height === 1);
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    let color;
    if (diverging && channels === 1) {
      const t = pixels[i] / 127, rest = 1 - Math.abs(t);
      const end = t > 0 ? [178, 24, 43] : [33, 102, 172];
      color = end.map((c) => Math.round(247 * rest + c * (1 - rest)));
    } else if (diverging) color = [0, 1, 2].map((c) => 127.5 + pixels[i * 3 + c]);
    else color = channels === 1 ? [pixels[i], pixels[i], pixels[i]] : [0, 1, 2].map((c) => pixels[i * 3 + c]);
    image.data.set([...color, 255], i * 4);
  }
  context.putImageData(image, 0, 0);
}
const pictures = data.pictures && { ...data.pictures, bytes: bytes(data.pictures.data, true) };
const images = data.images && { ...data.images, bytes: bytes(data.images.data, false) };
const size = (shape) => shape[0] * shape[1] * shape[2];
function eigenvector(output, rank) {
  const n = size(pictures.shape), start = (output * pictures.count + rank) * n;
  return pictures.bytes.subarray(start, start + n);
}

/* Plots. Plotly reads a little markup in its labels: what others wrote is escaped before it becomes one. */
const label = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
function layout(x, y, more = {}) {
  const axis = (title, own) => ({ title: { text: label(title), standoff: 8 }, gridcolor: at("line"), zerolinecolor: at("grey"), linecolor: at("line"), automargin: true, ...own });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: at("ink"), size: 12, family: "system-ui, sans-serif" },
    margin: { l: 52, r: 14, t: 34, b: 44 }, hovermode: "closest", dragmode: false, showlegend: true,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 } },
    xaxis: axis(x, more.x), yaxis: axis(y, more.y), ...more.rest,
  };
}
const options = { responsive: true, displayModeBar: false };
function plot(id, make) {
  show(id);
  const draw = () => { const [traces, where] = make(); return Plotly.react(id, traces, where, options); };
  plots.push(draw);
  return draw();
}
function logTicks(values) {
  const known = values.filter((value) => value > 0), low = Math.min(...known), high = Math.max(...known);
  const first = Math.floor(Math.log10(low)), powers = Array.from({ length: Math.ceil(Math.log10(high)) - first + 1 }, (_, i) => first + i);
  const fine = [1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9], tenths = Array.from({ length: 90 }, (_, i) => 1 + i / 10);
  let ticks = [];
  for (const digits of [[1, 2, 5], [1, 1.5, 2, 3, 5, 7], fine, tenths]) {
    ticks = powers.flatMap((power) => digits.map((digit) => Number((digit * 10 ** power).toPrecision(2))));
    const seen = ticks.filter((tick) => tick >= low && tick <= high);
    if (seen.length > 6 || (seen.length >= 3 && seen[0] < 1.5 * low)) break; // three or more are seen, and one near where curves end
  }
  return { type: "log", tickvals: ticks, ticktext: ticks.map(String) };
}
const line = (name, x, y, color, more = {}) => ({ name: label(name), x, y, mode: "lines+markers", line: { color: at(color), width: 2, ...more.line }, marker: { size: 5 }, ...more.trace });
function band(name, x, low, high, color) {
  const fill = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", legendgroup: name, showlegend: false };
  return [{ ...fill, x, y: low }, { ...fill, x, y: high, fill: "tonexty", fillcolor: at(color) + "33" }];
}

$("cards").append(...data.cards.map(([value, what]) => element("div", { class: "card" }, element("b", {}, value), element("span", {}, what))));

/* Of images, and of weights alone. */
function showOutputs() {
  show("spectrum");
  /* The spectrum: one output at a time, one eigenpair of it chosen. */
  let output = 0, rank = 0;
  const values = data.spectrum.values;
  function drawSpectrum() {
    const list = values[output], x = list.map((_, i) => i + 1);
    const color = list.map((value) => at(value > 0 ? "positive" : "negative"));
    const traces = [
      { x, y: list, mode: "markers", marker: { color, line: { width: 0 }, size: list.map((_, i) => (pictures && i < pictures.count ? 9 : 5)) }, hovertemplate: "rank %{x}<br>λ = %{y:.4g}<extra></extra>" },
      { x: [rank + 1], y: [list[rank]], mode: "markers", hoverinfo: "skip", marker: { size: 18, color: "rgba(0,0,0,0)", line: { color: at("accent"), width: 3 } } },
    ];
    const many = list.length > 60;
    return Plotly.react("plot-spectrum", traces, layout("rank by |λ|" + (many ? ", log scale" : ""), "eigenvalue λ", { x: many ? { type: "log", dtick: 1 } : {}, rest: { showlegend: false, margin: { l: 60, r: 14, t: 14, b: 44 } } }), options);
  }
  function choose(newOutput, newRank) {
    const last = (pictures ? Math.min(pictures.count, values[newOutput].length) : values[newOutput].length) - 1;
    output = newOutput; rank = Math.max(0, Math.min(last, newRank));
    [...$("outputs").children].forEach((tab, i) => { tab.setAttribute("aria-selected", i === output); tab.tabIndex = i === output ? 0 : -1; });
    drawSpectrum();
    detail();
  }
  function detail() {
    const name = data.outputs[output], value = values[output][rank];
    $("detail-title").textContent = `${name}: eigenvector ${rank + 1}, λ = ${signed(value)}`;
    const words = [];
    const gap = data.spectrum.gaps?.[output]?.[rank];
    if (gap !== undefined && gap !== null) words.push(`gap to the nearest eigenvalue ${fixed(100 * gap, 1)} % of |λ₁|`);
    const figures = data.analysis?.eigenvectors;
    if (figures && rank < figures.selectivity[output].length) {
      words.push(`AUC for the class ${fixed(figures.selectivity[output][rank])}`);
      words.push(`likeness to the class's mean ${fixed(figures.template_correlation[output][rank])}`);
      const rise = data.analysis.ablation.rise[output][rank];
      if (rise !== null) words.push(`loss without it ${signed(rise)} nats`);
    }
    if (data.spectrum.smoothness && data.spectrum.smoothness[output][rank] !== null) words.push(`total variation ${fixed(data.spectrum.smoothness[output][rank], 2)} of shuffled`);
    if (data.liked_rows && rank < data.liked_rows[output].length) words.push(`inputs with the largest response (x·v)², by row: ${data.liked_rows[output][rank].join(", ")}`);
    $("detail-figures").textContent = words.join("; ");
    if (!pictures) { $("vector").hidden = true; return; }
    paint($("vector"), eigenvector(output, rank), pictures.shape, true);
    $("vector").setAttribute("aria-label", `Eigenvector ${rank + 1} of ${name}, eigenvalue ${signed(value)}`);
    if (!images) return;
    show("liked-block");
    $("liked").replaceChildren(...images.liked[output][rank].map((index, place) => {
      const n = size(images.shape), canvas = element("canvas", { role: "img", "aria-label": `Test image of ${images.classes[index]}` });
      paint(canvas, images.bytes.subarray(index * n, index * n + n), images.shape, false);
      return element("figure", { "data-place": place }, canvas, element("figcaption", {}, images.classes[index]));
    }));
  }

  data.outputs.forEach((name, i) => $("outputs").append(element("button", { role: "tab", type: "button", onclick: () => choose(i, rank), "aria-selected": i === 0 }, name)));
  document.addEventListener("keydown", (event) => {
    if (!event.target.closest || !event.target.closest("#spectrum") || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!steps) return;
    event.preventDefault();
    choose((output + steps[0] + values.length) % values.length, rank + steps[1]);
    if (event.target.getAttribute("role") === "tab") $("outputs").children[output].focus();
  });
  const leading = (o) => data.analysis?.leading[o] ?? 0;
  choose(0, leading(0));
  plots.push(drawSpectrum);
  $("plot-spectrum").on("plotly_hover", (event) => { if (event.points[0].curveNumber === 0 && event.points[0].pointIndex !== rank) choose(output, event.points[0].pointIndex); });

  if (pictures && pictures.shape[2] === 3) $("atlas-colours").textContent = ", the colours of a vector around grey";
  if (pictures) {
    const shown = Math.min(10, pictures.count, values[0].length);
    data.outputs.forEach((name, o) => {
      const buttons = Array.from({ length: shown }, (_, i) => {
        const value = values[o][i], canvas = element("canvas", {});
        paint(canvas, eigenvector(o, i), pictures.shape, true);
        const open = () => { choose(o, i); $("plot-spectrum").scrollIntoView({ behavior: "smooth", block: "center" }); };
        return element("button", { type: "button", style: `border: 2px solid var(--${value > 0 ? "positive" : "negative"})`, title: `λ = ${signed(value)}`, "aria-label": `${name}, eigenvector ${i + 1}, eigenvalue ${signed(value)}`, onclick: open }, canvas);
      });
      $("atlas").append(element("div", { class: "row" }, element("span", {}, name), element("div", {}, ...buttons)));
    });
  } else $("atlas").append("No pictures: no shape of the inputs was given.");

  const analysis = data.analysis;
  if (analysis) {
    show("fidelity");
    const methods = Object.keys(analysis.fidelity), classes = Boolean(analysis.eigenvectors); // else outputs are no classes
    const ofClasses = { kl: "KL (nats)", agreement: "agreement", accuracy: "accuracy", network_accuracy: "network's accuracy" };
    const columns = classes ? Object.keys(ofClasses) : [];
    table("fidelity-table", ["gains γ", "R² of the outputs", ...columns.map((name) => ofClasses[name]), "R², calibration", "range of γ"],
      methods.map((name) => {
        const row = analysis.fidelity[name];
        return [name, fixed(row.r2), ...columns.map((column) => fixed(row[column], 4)), fixed(row.calibration_r2), `${fixed(row.gain_range[0], 2)} to ${fixed(row.gain_range[1], 2)}`];
      }), methods.indexOf(analysis.method), "chosen", true);
    if (analysis.linear_share !== null) $("linear-share").textContent = `The residual stream past the layer explains R² = ${fixed(analysis.linear_share)} of the logits by itself; it is linear, and no part of the forms.`;
    const cut = analysis.truncation;
    for (const part of document.querySelectorAll(".of-classes")) part.hidden = !classes;
    $("plot-ablation").hidden = !classes; // before the other is drawn: they share the width
    const lost = cut.k.filter((_, i) => cut.r2[i] < -1); // beyond the plot
    const shares = classes ? [line("agreement", cut.k, cut.agreement, "second"), line("accuracy", cut.k, cut.accuracy, "grey", { line: { dash: "dot" } })] : [];
    plot("plot-truncation", () => [[line("R²", cut.k, cut.r2, "accent"), ...shares],
      layout("eigenpairs kept for each output", "", { x: { type: "log", tickvals: [1, 2, 4, 8, 16, 32, 64, 128] }, y: { range: [Math.max(-1, Math.min(0, ...cut.r2.map(Number))) - 0.03, 1.03] }, rest: lost.length ? { title: { text: `R² below −1 at k = ${lost.join(", ")}`, font: { size: 12 }, x: 0.98, xanchor: "right" } } : {} })]);
    if (!classes) return;
    const rise = analysis.ablation.rise;
    plot("plot-ablation", () => [[{ mode: "markers", marker: { color: at("accent"), line: { width: 0 }, size: 6, opacity: 0.75 }, x: rise.flatMap((row, o) => row.map((_, i) => Math.abs(values[o][i]))), y: rise.flat(), text: rise.flatMap((row, o) => row.map((_, i) => label(`${data.outputs[o]}, eigenvector ${i + 1}`))), hovertemplate: "%{text}<br>|λ| %{x:.3g}: %{y:.3g} nats<extra></extra>" }],
      layout("|λ|", "rise in loss without it (nats)", { rest: { showlegend: false, title: { text: `Spearman correlation ${fixed(analysis.ablation.spearman, 2)}`, font: { size: 12 } } } })]);

    show("eigenvectors");
    const found = analysis.eigenvectors, ranks = analysis.spectrum;
    $("frechet-k").textContent = found.frechet.k;
    const smooth = data.spectrum.smoothness, gaps = data.spectrum.gaps;
    const rows = data.outputs.map((name, o) => [name, fixed(found.template_correlation[o][leading(o)]), smooth ? fixed(smooth[o][leading(o)] ?? null, 2) : "–", fixed(found.selectivity[o][leading(o)]), fixed(ranks.participation_rank[o], 1), fixed(ranks.entropy_rank[o], 1), percent(gaps[o][leading(o)] ?? null),
      fixed(found.frechet.eigenvectors[o], 2), fixed(found.frechet.pca[o], 2), fixed(found.frechet.random[o], 2)]);
    const first = (list) => mean(list.map((row, o) => row[leading(o)] ?? null));
    rows.push(["mean", fixed(first(found.template_correlation)), smooth ? fixed(first(smooth), 2) : "–", fixed(first(found.selectivity)), fixed(mean(ranks.participation_rank), 1), fixed(mean(ranks.entropy_rank), 1), percent(first(gaps)),
      ...["eigenvectors", "pca", "random"].map((name) => fixed(mean(found.frechet[name]), 2))]);
    table("eigenvector-table", ["class", "template", "variation", "AUC", "rank (participation)", "rank (entropy)", "gap", "Fréchet", "Fréchet, PCA", "Fréchet, random"], rows, rows.length - 1, "total");

    show("masks");
    const masks = analysis.masks, average = (list) => masks.norm_share.map((_, i) => mean(list.map((row) => row[i])));
    plot("plot-masks", () => [[...masks.eigenvectors.map((row, o) => ({ x: masks.norm_share, y: row, mode: "lines", line: { color: at("accent"), width: 1 }, opacity: 0.35, showlegend: false, text: row.map(() => label(data.outputs[o])), hovertemplate: "%{text}: %{y:.2f}<extra></extra>" })),
      line("masks, mean", masks.norm_share, average(masks.eigenvectors), "accent"), line("random, mean", masks.norm_share, average(masks.random), "grey", { line: { dash: "dot" } })],
      layout("norm / mean norm of an input", "share taken for the class", { y: { range: [-0.03, 1.03] } })]);
    if (data.masks) {
      const pixels = bytes(data.masks.data, true), n = size(data.masks.shape);
      $("mask-images").append(...data.outputs.slice(0, data.masks.count).map((name, o) => {
        const canvas = element("canvas", { role: "img", "aria-label": `Mask towards ${name}` });
        paint(canvas, pixels.subarray(o * n, o * n + n), data.masks.shape, true);
        return element("figure", {}, canvas, element("figcaption", {}, name));
      }));
    }
  }
}
if (data.spectrum) showOutputs();

if (data.layers) {
  show("layers");
  table("layer-table", ["layer", "identity", "bussgang", "output"], data.layers.map((row, i) => [String(i + 1), ...["identity", "bussgang", "output"].map((name) => fixed(row[name]))]));
}

if (data.curves) {
  show("curves");
  const epochs = data.curves.map((row) => row[data.language ? "step" : "epoch"]), column = (name) => data.curves.map((row) => row[name]);
  const validated = "validation_loss" in data.curves[0];
  const second = validated && (data.language ? "bits_per_byte" : "accuracy"), place = data.language ? "plot-bits" : "plot-accuracy";
  if (validated) show(place); // before either is drawn, for they share the width
  const x = data.language ? "step" : "epoch", trained = data.language ? "train, since the last evaluation" : data.provenance.config.noise_std > 0 ? "train (with noise)" : "train";
  plot("plot-loss", () => [[line(trained, epochs, column("train_loss"), "grey"), ...(validated ? [line("validation", epochs, column("validation_loss"), "accent")] : [])], layout(x, "loss (nats)", { y: logTicks([...column("train_loss"), ...column("validation_loss")]) })]);
  if (validated) plot(place, () => [[line("validation", epochs, column("validation_" + second), "accent")], layout(x, second.replaceAll("_", " "), { rest: { showlegend: false } })]);
}

if (data.comparison) {
  show("comparison");
  $("comparison-note").textContent = data.comparison.note;
  const found = data.comparison.measures, names = { disjoint: "different seeds", shared: "one initialisation", ceiling: "ceiling: the others with each other", classes: "null: other outputs", untrained: "null: before training", random: "null: random vectors" };
  const colors = { disjoint: "accent", shared: "second", ceiling: "grey", classes: "negative", untrained: "positive", random: "ink" };
  const draw = (measure, x, y) => () => {
    const arms = Object.keys(names).filter((arm) => found[measure][arm]);
    const traces = arms.flatMap((arm) => {
      const own = found[measure][arm], ranks = own.mean.map((_, i) => i + 1);
      const dash = { classes: "dot", untrained: "dash", random: "dashdot" }[arm] || "solid";
      return [...band(arm, ranks, own.low, own.high, colors[arm]), line(names[arm], ranks, own.mean, colors[arm], { line: { dash }, trace: { legendgroup: arm } })];
    });
    return [traces, layout(x, y, { y: { range: [0, 1.03] }, rest: { legend: { orientation: "h", y: -0.22, yanchor: "top", font: { size: 10 } } } })];
  };
  for (const id of ["plot-rank", "plot-overlap"]) $(id).style.height = "400px";
  plot("plot-rank", draw("rank_cosine", "rank by |λ|", "|cos|"));
  plot("plot-overlap", draw("overlap", "first k eigenvectors", "overlap of spans"));
  const interval = (own, i) => { const part = (list) => (Array.isArray(list) ? list[i] : list); if (!own || part(own.mean) === null) return "–"; return fixed(part(own.mean), 2) + (part(own.low) === null ? "" : ` [${fixed(part(own.low), 2)}, ${fixed(part(own.high), 2)}]`); };
  const rows = [["rank_cosine", 0, "|cos|, rank 1"], ["matched_cosine", 0, "|cos|, rank 1, matched"], ["overlap", -1, "overlap of all spans"], ["angle", -1, "largest principal angle (radians)"], ["form_cosine", 0, "cosine of forms"], ["data_form_cosine", 0, "cosine of forms, data metric"]];
  table("comparison-table", ["measure", "one initialisation", "different seeds", "ceiling", "of the ceiling", "other outputs", "before training", "random vectors"], rows.map(([measure, place, name]) => {
    const own = found[measure], i = place < 0 ? (own.ceiling.mean.length || 1) - 1 : place;
    return [name, ...["shared", "disjoint", "ceiling", "fraction", "classes", "untrained", "random"].map((arm) => interval(own[arm], i))];
  }));
}

$("config").textContent = JSON.stringify(data.provenance, null, 2);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((draw) => draw()));

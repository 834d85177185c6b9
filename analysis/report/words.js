"use strict";
/* The terms of the page: each explained where it stands, by pointing at it or with the keyboard, and in the glossary. */
const TERMS = {
  identity: "Gains of 1: the gate is read as the identity, as in the paper.",
  bussgang: "Gains E[u σ(u)] / E[u²]: least squares for the gate itself (Bussgang 1952).",
  gaussian: "Gains and linear terms that would be least squares if the layer's input were Gaussian (Belrose and Rigg 2025).",
  output: "Gains E[a² u σ(u)] / E[a² u²]: least squares for each hidden unit's output.",
  output_affine: "Least squares for each hidden unit's output by γ·a·u + β·a and a constant.",
  joint: "Least squares for the layer's outputs, over the gains of all hidden units at once.",
  joint_affine: "As joint, over gains and a linear map of the input at once.",
  affine: "Gains of all hidden units and a linear map of the input, by least squares for the layer's outputs.",
  surrogate: "A bilinear layer that is fitted to the outputs of the layer. Its weights are not the model's.",
  distilled: "The fitted GLU with the new gate, measured on what the original's adds.",
  agreement: "The share of samples for which the forms and the network name the same class.",
  "KL (nats)": "Kullback-Leibler divergence from the network's probabilities to those of the forms, mean over samples.",
  AUC: "Area under the ROC curve: the chance that (x·v)² is larger for an input of the class than for another. ½ is chance.",
  template: "|Correlation| of the eigenvector with the mean input of its class minus the mean of all inputs.",
  variation: "Total variation of the eigenvector's picture over that of its shuffled pixels: 1 is noise, smaller is smoother.",
  "Fréchet": "Fréchet distance between test inputs and their projection on the leading eigenvectors, as Gaussians in the features of a small classifier. Smaller is closer.",
  "Fréchet, PCA": "The same with principal components, the best directions for squared error.",
  "Fréchet, random": "The same with random directions.",
  "rank (participation)": "(Σ|λ|)² / Σλ²: how many eigenvalues count.",
  "rank (entropy)": "exp of the entropy of |λ| / Σ|λ|: how many eigenvalues count, small ones more.",
  gap: "Distance of the eigenvector's eigenvalue to the nearest other one, over the largest |λ|: near 0 the eigenvector is not determined.",
  "R², calibration": "R² on the samples that the gains were fitted on.",
  sinks: "Places where |y|² is beyond a hundred medians, as at the beginning of a text; left out of R².",
  cosine: "Cosine of two forms as vectors: 1 for the same, near 0 for unrelated ones.",
  overlap: "Of two spans: mean squared cosine of the angles between them. 1 for the same span.",
  "overlap of all spans": "Mean squared cosine of the angles between the spans of all eigenvectors that were compared.",
  "|cos|, rank 1": "|Cosine| of the eigenvectors with the largest |λ| of two networks.",
  "|cos|, rank 1, matched": "The same with the best partner in the other network instead of that of equal rank.",
  ceiling: "How alike the other networks are to each other: no comparison with them can be expected to be higher.",
  "of the ceiling": "The likeness of networks of different seeds over the ceiling.",
  "one initialisation": "Networks that began with the same weights: their likeness alone proves nothing.",
  "random vectors": "What chance gives: random directions in the same space.",
};
const usedTerms = new Set();

/* Text as a term that explains itself, where it is one, or ends in one as "R², joint" does. */
function worded(text) {
  if (typeof text !== "string") return text;
  const key = text in TERMS ? text : text.replace(/^.*, /, "");
  if (!Object.hasOwn(TERMS, key)) return text;
  usedTerms.add(key);
  const tip = document.getElementById("tip");
  const term = document.createElement("span");
  Object.assign(term, { className: "term", tabIndex: 0, textContent: text });
  term.dataset.term = key;
  term.setAttribute("aria-describedby", "tip");
  const open = () => {
    tip.textContent = TERMS[key];
    tip.hidden = false;
    const box = term.getBoundingClientRect(), room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(box.left, room))}px`;
    tip.style.top = `${box.bottom + 6 + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 6 : box.bottom + 6}px`;
  };
  const close = () => { tip.hidden = true; };
  for (const [event, action] of [["mouseenter", open], ["focus", open], ["mouseleave", close], ["blur", close]]) term.addEventListener(event, action);
  term.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  return term;
}

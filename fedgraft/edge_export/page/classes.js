// The class bank: a safetensors file, and calibrated probabilities from cosines.

/** Class features (rows) and logit scale of classes.safetensors. */
export function readClasses(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensor = (name) => {
    const [begin, end] = header[name].data_offsets;
    return new Float32Array(buffer.slice(8 + length + begin, 8 + length + end));
  };
  return { features: tensor("class_features"), scale: tensor("logit_scale")[0] };
}

/** The probability of each class for an embedding. */
export function probabilities(embedding, { features, scale }, temperature) {
  const dim = embedding.length, logits = [];
  for (let row = 0; row * dim < features.length; row++) {
    let cosine = 0;
    for (let k = 0; k < dim; k++) cosine += embedding[k] * features[row * dim + k];
    logits.push((scale / temperature) * cosine);
  }
  const most = Math.max(...logits), grown = logits.map((logit) => Math.exp(logit - most));
  const sum = grown.reduce((a, b) => a + b);
  return grown.map((value) => value / sum);
}

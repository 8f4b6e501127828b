// From an image file to pixel values, bit for bit as Pillow and NumPy compute them in fedgraft/device/preprocessing.py.

const PIXEL_LIMIT = 89478485;
const PRECISION = 22; // bits of Pillow's 8-bit coefficients: 32 - 8 - 2

const FILTERS = {
  2: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  3: { support: 2, weight: cubic },
};

function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** An image file as upright RGB: {width, height, data}, three bytes a pixel. */
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const { width, height } = bitmap;
  if (width * height > PIXEL_LIMIT) throw new Error(`The image has ${width} x ${height} pixels; make it smaller.`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { width, height, data };
}

/** Pixel values [3, height, width] as preprocessor_config.json asks for. */
export function preprocess(image, config) {
  let { width, height, data } = config.do_resize === false ? image : resized(image, config);
  if (config.do_center_crop !== false) ({ width, height, data } = cropped({ width, height, data }, config.crop_size));
  const values = new Float32Array(3 * height * width);
  const rescale = config.do_rescale !== false, normalize = config.do_normalize !== false;
  const offset = rescale && config.rescale_offset === true, again = config.include_top === true;
  for (let channel = 0; channel < 3; channel++) {
    const mean = Math.fround(config.image_mean?.[channel]), std = Math.fround(config.image_std?.[channel]);
    for (let pixel = 0; pixel < height * width; pixel++) {
      let value = data[3 * pixel + channel];
      if (rescale) value = Math.fround(value * config.rescale_factor);
      if (offset) value = Math.fround(value - 1);
      if (normalize) value = Math.fround(Math.fround(value - mean) / std);
      if (again) value = Math.fround(value / std);
      values[channel * height * width + pixel] = value;
    }
  }
  return { values, shape: [3, height, width] };
}

function resized(image, config) {
  const size = config.size, shortest = typeof size === "number" ? size : size.shortest_edge;
  let [width, height] = [size.width, size.height];
  if (shortest) {
    const short = Math.min(image.width, image.height), long = Math.max(image.width, image.height);
    const longer = Math.trunc((shortest * long) / short);
    if (shortest * longer > PIXEL_LIMIT) throw new Error("The image is too narrow to be resized.");
    [width, height] = image.width <= image.height ? [shortest, longer] : [longer, shortest];
  }
  return resize(image, width, height, config.resample ?? 3);
}

/** Pillow's separable resampling with antialiasing: rows first, each pass rounded to 8 bits. */
export function resize(image, width, height, resample) {
  const filter = FILTERS[resample];
  if (!filter) throw new Error(`The page cannot resize with Pillow's filter ${resample}.`);
  const wide = width === image.width ? image : pass(image, width, filter, true);
  return height === wide.height ? wide : pass(wide, height, filter, false);
}

function pass(image, size, filter, along) {
  const { starts, weights } = coefficients(along ? image.width : image.height, size, filter);
  const width = along ? size : image.width, height = along ? image.height : size;
  const data = new Uint8ClampedArray(width * height * 3);
  const step = along ? 3 : 3 * image.width;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const place = along ? x : y, row = weights[place];
      const begin = 3 * (along ? y * image.width + starts[place] : starts[place] * image.width + x);
      let r = 1 << (PRECISION - 1), g = r, b = r;
      for (let k = 0, at = begin; k < row.length; k++, at += step) {
        r += image.data[at] * row[k];
        g += image.data[at + 1] * row[k];
        b += image.data[at + 2] * row[k];
      }
      const to = 3 * (y * width + x);
      data[to] = r >> PRECISION;
      data[to + 1] = g >> PRECISION;
      data[to + 2] = b >> PRECISION;
    }
  }
  return { width, height, data };
}

function coefficients(from, to, filter) {
  const scale = from / to, stretch = Math.max(scale, 1), support = filter.support * stretch;
  const starts = [], weights = [];
  for (let place = 0; place < to; place++) {
    const center = (place + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(from, Math.trunc(center + support + 0.5));
    const row = [];
    let sum = 0;
    for (let x = begin; x < end; x++) {
      const weight = filter.weight((x - center + 0.5) * (1 / stretch));
      row.push(weight);
      sum += weight;
    }
    starts.push(begin);
    weights.push(Int32Array.from(row, (w) => Math.trunc((w / sum) * (1 << PRECISION) + (w / sum < 0 ? -0.5 : 0.5))));
  }
  return { starts, weights };
}

/** The centre, with black around it where the image is smaller. */
function cropped(image, size) {
  const height = size.height ?? size, width = size.width ?? size;
  const top = Math.floor((image.height - height) / 2), left = Math.floor((image.width - width) / 2);
  const data = new Uint8Array(height * width * 3);
  for (let y = Math.max(0, -top); y < Math.min(height, image.height - top); y++) {
    for (let x = Math.max(0, -left); x < Math.min(width, image.width - left); x++) {
      const from = 3 * ((y + top) * image.width + x + left), to = 3 * (y * width + x);
      data[to] = image.data[from];
      data[to + 1] = image.data[from + 1];
      data[to + 2] = image.data[from + 2];
    }
  }
  return { width, height, data };
}

// Noise that a number decides, as a picture begins in it: for frames that wait, and for the landscape of an empty page.

/** Returns a function that draws the same numbers from 0 to 1 for the same seed (mulberry32). */
function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const grain = (draw) => (draw() + draw() + draw() - 1.5) * 150; // near a normal distribution

function paint(canvas, colour) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let y = 0, at = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, at += 4) {
      image.data.set([...colour(x, y), 255], at);
    }
  }
  context.putImageData(image, 0, 0);
}

export function paintNoise(canvas, seed) {
  const draw = random(seed);
  paint(canvas, () => {
    const light = 128 + grain(draw);
    return [light + grain(draw) / 4, light + grain(draw) / 4, light + grain(draw) / 4];
  });
}

const mix = (a, b, share) => a.map((value, index) => value + (b[index] - value) * share);

/** Paints hills under a low sun: noise at the left, a picture at the right. */
export function paintLandscape(canvas) {
  const { width, height } = canvas;
  const draw = random(7);
  const ridges = [
    { base: 0.62, swing: 0.08, pace: 3.1, colour: [196, 108, 84] },
    { base: 0.74, swing: 0.07, pace: 4.7, colour: [134, 66, 70] },
    { base: 0.88, swing: 0.06, pace: 6.3, colour: [70, 42, 60] },
  ];
  paint(canvas, (x, y) => {
    const across = x / width;
    const down = y / height;
    let colour = mix([74, 98, 138], [252, 190, 120], Math.min(1, down * 1.5));
    if (Math.hypot((x - width * 0.72) / height, down - 0.5) < 0.2) colour = [255, 236, 196];
    for (const { base, swing, pace, colour: hill } of ridges) {
      const top = base + swing * Math.sin(across * pace * 2 + pace) + (swing / 3) * Math.sin(across * pace * 7);
      if (down > top) colour = mix(hill, colour, 0.12);
    }
    const noisy = Math.max(0, 1 - across * 1.25) ** 1.1;
    const light = grain(draw);
    const speck = [128 + light + grain(draw) / 3, 128 + light + grain(draw) / 3, 128 + light + grain(draw) / 3];
    return mix(colour, speck, noisy);
  });
}

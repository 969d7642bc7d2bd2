// A picture that somebody hands to the page, made one that the server takes.

const LONGEST = 1536; // pixels of a side: more than any model draws

/** Is thrown for a file that this browser shows as no picture. */
export class NoPicture extends Error {}

/** Returns a file as { blob, width, height }: upright, not larger than needed, PNG or JPEG. Throws NoPicture. */
export async function pictureOf(file, longest = LONGEST) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new NoPicture("This browser cannot show that file as a picture. PNG, JPEG and WebP always work.");
  }
  const scale = Math.min(1, longest / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale));
  const height = Math.max(1, Math.round(bitmap.height * scale));
  // A PNG keeps every pixel; of other files the browser knows best what they hold, and which way is up.
  if (file.type === "image/png" && scale === 1) return { blob: file, width, height };
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const blob = await canvas.convertToBlob({ type: file.type === "image/png" ? "image/png" : "image/jpeg", quality: 0.95 });
  return { blob, width, height };
}

/** Returns the first picture of what was dropped or pasted, or null. */
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}

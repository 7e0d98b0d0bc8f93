/** Numbers in a compact, readable form. */

const STEPS = ["", "k", "M", "G", "T", "P"];

/** `0`, `999`, `1.5k`, `12M`: at most four characters up to 999P, by thousands. */
export function short(value: number): string {
  let step = 0;
  let scaled = value;
  // What rounds to a thousand is one of the next.
  while (scaled >= 999.5 && step < STEPS.length - 1) {
    scaled /= 1000;
    step += 1;
  }
  if (step === 0 && Number.isInteger(value)) return String(value);
  const digits = scaled < 9.95 ? 1 : 0;
  return scaled.toFixed(digits).replace(/\.0$/, "") + (STEPS[step] ?? "");
}

/** Bytes a second: `0 B/s`, `1.5 kB/s`. */
export function byteRate(bytes: number): string {
  const [, number = "", step = ""] = /^([\d.]+)(\D?)$/.exec(short(bytes)) ?? [];
  return `${number} ${step}B/s`;
}

/** Seconds as `12s`, `3m05s`, `2h30m`, `5d12h`. */
export function duration(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  const pad = (value: number) => String(value).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${pad(whole % 60)}s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)}h${pad(Math.floor(whole / 60) % 60)}m`;
  return `${Math.floor(whole / 86_400)}d${pad(Math.floor(whole / 3600) % 24)}h`;
}

// Times in the viewer's words, kept true while the page stays open. The same words as app/pages/words.py.

export function ago(seconds) {
  if (seconds < 10) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return null; // days do not change while one looks
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return seconds >= 10 ? `${Math.round(seconds)} s` : `${seconds.toFixed(1)} s`;
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${two((seconds % 3600) / 60)} min`;
}

export function tickTimes() {
  setInterval(() => {
    for (const time of document.querySelectorAll("time[datetime]")) {
      if (time.closest(".log")) continue;
      const words = ago((Date.now() - Date.parse(time.dateTime)) / 1000);
      if (words && time.textContent !== words) time.textContent = words;
    }
  }, 10000);
}

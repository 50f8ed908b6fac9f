// Two predictions of one image laid over each other: blinking, or one beside the other at a line that moves.

const BLINK_MS = 600;
const COPIED = ["mask", "edited", "reference", "difference"];

export function watchPair(group) {
  const tools = document.querySelector("[data-pair-tools]");
  if (!tools) return;
  const [first, second] = group.views;
  const button = tools.querySelector("[data-blink]");
  const line = tools.querySelector("[data-swipe]");
  let timer = null;
  tools.hidden = false;

  // Layers of B in the frame of A; which of them are shown is what B shows.
  const others = COPIED.flatMap((name) => {
    const layer = second.stack.querySelector(`img.${name}`);
    if (!layer) return [];
    const copy = layer.cloneNode();
    copy.className = "other";
    copy.dataset.name = name;
    copy.alt = "";
    copy.style.opacity = "var(--layer-opacity, .6)";
    first.stack.append(copy);
    return [copy];
  });
  const own = () => first.stack.querySelectorAll(".layer");
  const lay = (share, over) => {
    first.frame.classList.toggle("against", over);
    for (const layer of own()) layer.style.clipPath = over ? `inset(0 ${100 - share}% 0 0)` : "";
    for (const copy of others) {
      const box = second.root.querySelector(`input[data-layer="${copy.dataset.name}"]`);
      copy.classList.toggle("up", over && Boolean(box?.checked));
      copy.style.clipPath = `inset(0 0 0 ${share}%)`;
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.setAttribute("aria-pressed", "false");
    delete first.frame.dataset.blink;
  };
  button.addEventListener("click", () => {
    if (timer) {
      stop();
      return lay(100, false);
    }
    let b = false;
    const turn = () => {
      b = !b;
      first.frame.dataset.blink = b ? "B" : "A";
      lay(b ? 0 : 100, true);
    };
    button.setAttribute("aria-pressed", "true");
    timer = setInterval(turn, BLINK_MS);
    turn();
  });
  line.addEventListener("input", () => {
    stop();
    lay(Number(line.value), Number(line.value) < 100);
  });
}

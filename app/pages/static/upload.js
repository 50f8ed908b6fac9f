// Images that are chosen together, dropped on the page or pasted are sent one after the other, so that each may be as
// large as a file may be and one that is refused does not keep the others back.

export function watchUpload() {
  const form = document.querySelector("[data-upload]");
  if (!form) return;
  const input = form.querySelector("input[type=file]");
  const told = document.querySelector("[data-told]");
  for (const tools of form.parentElement.querySelectorAll("[data-tools]")) tools.hidden = false;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const take = (event, files) => {
    if (!files?.length) return;
    event.preventDefault();
    send(form, told, [...files]);
  };

  form.addEventListener("submit", (event) => { if (input.files.length > 1) take(event, input.files); });
  document.addEventListener("paste", (event) => take(event, event.clipboardData?.files));
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (hasFiles(event)) take(event, event.dataTransfer.files);
  });
}

async function send(form, told, files) {
  if (form.dataset.busy) return;
  form.dataset.busy = "yes";
  const refused = [];
  let last = form.action;
  for (const [index, file] of files.entries()) {
    told.textContent = `Sending ${index + 1} of ${files.length}: ${file.name}`;
    const body = new FormData();
    body.set("csrf_token", form.elements.csrf_token.value);
    body.set("spacing_mm", form.elements.spacing_mm.value);
    body.set("file", file, file.name);
    try {
      const answer = await fetch(form.action, { method: "POST", body, headers: { Accept: "application/json" } });
      if (answer.ok) last = answer.url;
      else refused.push(`${file.name}: ${(await answer.json()).detail}`);
    } catch {
      refused.push(`${file.name}: the service did not answer. Send it again.`);
    }
  }
  delete form.dataset.busy;
  if (!refused.length) return location.assign(files.length === 1 ? last : form.action);
  const list = document.createElement("ul");
  list.append(...refused.map((sentence) => Object.assign(document.createElement("li"), { textContent: sentence })));
  const note = Object.assign(document.createElement("div"), { className: "note bad pages" });
  const kept = files.length - refused.length;
  note.append(Object.assign(document.createElement("b"), { textContent: `${kept} of ${files.length} images are stored.` }), list);
  told.replaceChildren(note);
}

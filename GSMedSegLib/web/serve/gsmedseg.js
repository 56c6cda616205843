// What the page does on its own: keys, files dropped on it, uploads and downloads.
(function () {
  "use strict";

  const ACTIONS = {
    f: "foreground", "+": "foreground", b: "background", "-": "background", x: "box",
    w: "window", v: "view", z: "undo", y: "redo", n: "add", h: "hint", escape: "escape",
    1: "Axial", 2: "Coronal", 3: "Sagittal", 4: "Surface",
  };

  function set(name, value) {
    window.trame.state.set(name, value);
  }

  function trigger(name, ...args) {
    return window.trame.trigger(name, args);
  }

  // Without a connection nobody hears it: then the page says that the connection is lost, and comes back by itself.
  function tell(name, ...args) {
    trigger(name, ...args).catch(() => {});
  }

  function isTyping(target) {
    return target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) && target.type !== "range";
  }

  // Before Slicer's views, which have keys of their own.
  window.addEventListener("keydown", (event) => {
    if (isTyping(event.target) || !window.trame) return;
    let key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key === "z") key = event.shiftKey ? "y" : "z";
      else if (key !== "y") return;
    }
    // A menu or dialog closes, and that is all that is meant.
    if (key === "escape" && document.querySelector(".v-overlay--active.v-menu, .v-overlay--active.v-dialog")) return;
    const action = ACTIONS[key];
    if (!action || event.altKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!event.repeat || action === "undo" || action === "redo") tell("act", action);
  }, true);

  // The connection

  const AGAIN_MS = 1000;
  let lost = false;

  async function comeBack() {
    if (lost) return;
    lost = true;
    for (;;) {
      await new Promise((go) => setTimeout(go, AGAIN_MS));
      const answer = await fetch(location.href, { cache: "no-store" }).catch(() => null);
      if (answer?.ok) return location.reload();
      if (answer?.status !== 403) continue;
      const text = document.querySelector(".gs-lost p");
      if (text) text.textContent = "GSMedSeg was started anew: open the address that it printed.";
    }
  }

  window.trame.addConnectListener(() => {
    window.trame.client.onConnectionClose(comeBack);
    window.trame.client.onConnectionError(comeBack);
  });

  // Fingers: Slicer's views know the mouse alone, and a click needs a move before it. The first finger is the mouse.

  let finger = null;

  function asMouse(event, type, buttons) {
    const { pointerId, clientX, clientY } = event;
    const button = type === "pointermove" ? -1 : 0;
    const more = { bubbles: true, cancelable: true, pointerType: "mouse", isPrimary: true };
    event.target.dispatchEvent(new PointerEvent(type, { ...more, pointerId, clientX, clientY, button, buttons }));
  }

  for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) {
    window.addEventListener(type, (event) => {
      if (event.pointerType === "mouse" || !event.target.closest?.(".remote-controlled-area")) return;
      event.stopImmediatePropagation();
      if (type === "pointerdown" && finger === null) {
        finger = event.pointerId;
        asMouse(event, "pointermove", 0);
        asMouse(event, "pointerdown", 1);
      } else if (event.pointerId === finger && type === "pointermove") {
        asMouse(event, "pointermove", 1);
      } else if (event.pointerId === finger && type !== "pointerdown") {
        finger = null;
        asMouse(event, "pointerup", 0);
      }
    }, true);
  }

  // Uploads

  const AT_ONCE = 4;
  let sending = null;

  // The image asked for last is wanted: what is still being sent of another one is not.
  async function open(what, ...args) {
    sending?.abort();
    try {
      await trigger(`open_${what}`, ...args);
    } catch (error) {
      set("opening", "");
      tell("fail", `The image could not be opened: ${error.message}`);
    }
  }

  async function upload(files) {
    if (!files.length) return;
    sending?.abort();
    const { signal } = (sending = new AbortController());
    const random = crypto.getRandomValues(new Uint8Array(8));
    const batch = Array.from(random, (part) => part.toString(16).padStart(2, "0")).join("");
    const waiting = [...files];
    let done = 0;
    set("opening", `Sending ${files.length > 1 ? files.length + " files" : files[0].file.name}…`);

    async function work() {
      while (waiting.length) {
        const { path, file } = waiting.shift();
        const where = path.split("/").map(encodeURIComponent).join("/");
        const answer = await fetch(`upload/${batch}/${where}`, { method: "PUT", body: file, signal });
        if (!answer.ok) throw new Error(await answer.text());
        done += 1;
        if (files.length > 1) set("opening", `Sending ${done} of ${files.length} files…`);
      }
    }

    try {
      await Promise.all(Array.from({ length: AT_ONCE }, work));
    } catch (error) {
      if (!signal.aborted) {
        sending.abort();
        set("opening", "");
        tell("fail", `The image could not be sent: ${error.message}`);
      }
      tell("forget_upload", batch);
      return;
    }
    await open("upload", batch);
  }

  function choose(directory) {
    const input = document.createElement("input");
    input.type = "file";
    input.multiple = true;
    input.webkitdirectory = directory;
    input.style.display = "none";
    input.id = "gs-file-input";
    document.getElementById(input.id)?.remove();
    document.body.appendChild(input);
    input.addEventListener("change", () => {
      upload(Array.from(input.files, (file) => ({ path: file.webkitRelativePath || file.name, file })));
      input.remove();
    });
    input.click();
  }

  async function walk(entry, found) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      found.push({ path: entry.fullPath.replace(/^\/+/, ""), file });
    } else if (entry.isDirectory) {
      const reader = entry.createReader();
      for (;;) {
        const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!part.length) break;
        for (const inner of part) await walk(inner, found);
      }
    }
  }

  window.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("gs-drop");
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("gs-drop");
  });
  window.addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("gs-drop");
    const entries = Array.from(event.dataTransfer.items, (item) => item.webkitGetAsEntry?.()).filter(Boolean);
    const found = entries.length ? [] : Array.from(event.dataTransfer.files, (file) => ({ path: file.name, file }));
    for (const entry of entries) await walk(entry, found);
    await upload(found);
  });

  // Downloads

  async function save(format) {
    set("saving", true);
    try {
      const answer = await fetch(`save/${format}`);
      if (!answer.ok) throw new Error(await answer.text());
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = decodeURIComponent(answer.headers.get("X-Name"));
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    } catch (error) {
      tell("fail", error.message);
    } finally {
      set("saving", false);
    }
  }

  window.gsmedseg = { choose, open, save, upload };
})();

// A browser starts no worker for a page that was opened as a file. There, a worker's script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source !== inside) return;
        const copy = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(copy);
        if (this.onmessage) this.onmessage(copy);
      });
      const load = (source) => `<script src="${new URL(source, document.baseURI)}"><\/script>`;
      this.ready = new Promise((resolve) => (inside.onready = resolve));
      inside.document.open();
      inside.document.write(
        `<script>
           const outside = parent, queue = [];
           self.postMessage = (data) => outside.postMessage(data, "*");
           self.importScripts = (...sources) => sources.reduce((before, source) => before.then(() => new Promise((done) => {
             const script = document.createElement("script");
             script.src = source; script.onload = done; document.body.appendChild(script);
           })), Promise.resolve());
         <\/script><body>${load(url)}<script>onready()<\/script></body>`
      );
      inside.document.close();
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data, source: window })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}

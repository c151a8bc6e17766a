/* The search runs in a Worker, which browsers refuse to pages that are opened as files. There, a hidden frame takes its
   place: it runs the same script, and exchanges the same messages with the page. Pages of a server use a real Worker. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.loaded = new Promise(resolve => this.frame.addEventListener("load", resolve))
      addEventListener("message", event => {
        if (event.source === this.frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
      const send = "postMessage = message => parent.postMessage(message, '*')"
      this.frame.srcdoc = `<!doctype html><script>${send}<\/script><script src="${url}"><\/script>`
      const attach = () => document.body.appendChild(this.frame)
      document.body ? attach() : addEventListener("DOMContentLoaded", attach)
    }
    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.frame.remove()
    }
  }
}

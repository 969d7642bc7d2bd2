// The pictures of this browser, in its IndexedDB: nothing of them is kept on the server.

const MOST = 300; // pictures
const LARGEST = 300e6; // bytes of all of them: browsers give a site far more, but it is somebody's disk

const answered = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const ended = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });

function opened() {
  const request = indexedDB.open("latentd", 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
    request.result.createObjectStore("films", { keyPath: "id" });
  };
  return answered(request);
}

/** Keeps pictures, newest first. `lasting` is false where the browser keeps nothing: then they live as long as the page. */
export class Store {
  static most = MOST;

  static async open() {
    const store = new Store();
    try {
      store.database = await opened();
      store.database.onversionchange = () => store.database.close();
      const transaction = store.database.transaction("pictures");
      store.pictures = (await answered(transaction.objectStore("pictures").getAll())).reverse();
    } catch {
      store.database = null;
    }
    return store;
  }

  database = null;
  pictures = [];
  #films = new Map(); // of what could not be stored
  #adding = Promise.resolve(); // the last picture that was handed in

  get lasting() {
    return this.database !== null;
  }

  find(id) {
    return this.pictures.find((picture) => picture.id === id) ?? null;
  }

  /** Adds a picture and the frames of its film, and lets the oldest go. Returns it with its id, and whether it is stored. */
  add(picture, frames) {
    // One after the other: the gallery is in the order in which pictures came, however long each takes to be stored.
    const adding = this.#adding.then(() => this.#add(picture, frames));
    this.#adding = adding.catch(() => {});
    return adding;
  }

  async #add(picture, frames) {
    const { original, style } = picture;
    const blobs = [picture.blob, original?.blob, original?.mask, style?.blob, ...frames].filter(Boolean);
    const bytes = blobs.reduce((sum, blob) => sum + blob.size, 0);
    const record = { ...picture, bytes };
    let stored = false;
    for (let tries = 0; this.lasting && !stored && tries < 3; tries++) {
      try {
        const transaction = this.database.transaction(["pictures", "films"], "readwrite");
        const done = ended(transaction);
        done.catch(() => {}); // where adding fails first, that error is the one to look at
        record.id = await answered(transaction.objectStore("pictures").add(record));
        transaction.objectStore("films").add({ id: record.id, frames });
        await done;
        stored = true;
      } catch (error) {
        delete record.id;
        if (error?.name !== "QuotaExceededError" || !this.pictures.length) break;
        await this.remove(this.pictures.slice(-10).map((old) => old.id)); // the disk is full: ten for one
      }
    }
    if (!stored) {
      record.id = -1 - this.#films.size; // beside those that the database counts
      this.#films.set(record.id, frames);
    }
    this.pictures.unshift(record);
    await this.#trim();
    return { picture: record, stored };
  }

  async #trim() {
    let sum = 0;
    const old = this.pictures.filter((picture, index) => (sum += picture.bytes) > LARGEST || index >= MOST);
    if (old.length) await this.remove(old.map((picture) => picture.id));
  }

  /** Returns the frames that a picture was seen in while it formed, first to last. */
  async film(id) {
    if (id < 0) return this.#films.get(id) ?? [];
    const film = await answered(this.database.transaction("films").objectStore("films").get(id)).catch(() => null);
    return film?.frames ?? [];
  }

  async remove(ids) {
    this.pictures = this.pictures.filter((picture) => !ids.includes(picture.id));
    if (!this.lasting) return;
    const transaction = this.database.transaction(["pictures", "films"], "readwrite");
    for (const id of ids) {
      transaction.objectStore("pictures").delete(id);
      transaction.objectStore("films").delete(id);
    }
    await ended(transaction);
  }
}

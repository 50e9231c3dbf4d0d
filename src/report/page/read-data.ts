/** What of an element is needed. */
interface DataElement {
  readonly textContent: string | null;
  getAttribute(name: string): string | null;
}

/** The data of a page: an element of its document with JSON as text, or gzip in base64 when that is shorter. */
export async function readData(element: DataElement): Promise<unknown> {
  const text = element.textContent ?? '';
  if (element.getAttribute('type') === 'application/json') return JSON.parse(text) as unknown;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return await new Response(unpacked).json();
}

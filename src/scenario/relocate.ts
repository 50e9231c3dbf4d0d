/** A scenario's text for a file in another directory: what it names by a path relative to its own file is named from there. */
import { dirname, extname, join, relative } from 'node:path';
import { isMap, isScalar, parseDocument, type Document } from 'yaml';
import { HOST_FILES } from './schema.js';

/** The text of a changed document, in lines as long as those of the files that are shipped. */
export function fileText(document: Document): string {
  return document.toString({ lineWidth: 160 });
}

/** The text of the scenario `file` as it must be in a file of `directory`; unchanged where it names no other file. */
export function relocated(text: string, file: string, directory: string): string {
  const document = parseDocument(text, { intAsBigInt: true });
  const hosts = document.get('hosts');
  let isChanged = false;
  for (const { value: host } of isMap(hosts) ? hosts.items : []) {
    for (const [key, extension] of Object.entries(HOST_FILES)) {
      const value = isMap(host) ? host.get(key, true) : undefined;
      if (!isScalar(value) || typeof value.value !== 'string' || extname(value.value) !== extension) continue;
      value.value = relative(directory, join(dirname(file), value.value));
      isChanged = true;
    }
  }
  return isChanged ? fileText(document) : text;
}

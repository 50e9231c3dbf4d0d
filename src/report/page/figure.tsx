/**
 * What both drawings share: a measured width, a tooltip for pointer and focus, rows whose marks the arrow keys walk.
 *
 * A row of marks is one stop of the Tab key; the arrows move along it, Home and End to its ends. Every mark is a link to
 * itself, so Enter (or a click) puts it into the address, where it stays marked and can be passed on.
 */
import type { ComponentChildren, TargetedEvent, TargetedKeyboardEvent } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import type { AxisLabel } from './scale.js';

/** The width of an element, from when it is in the page. */
export function useWidth<T extends Element>() {
  const ref = useRef<T>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const element = ref.current;
    if (element === null) return;
    const measure = (): void => setWidth(Math.round(element.getBoundingClientRect().width));
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return { ref, width };
}

/** Lines across a drawing with their labels below. */
export function Axis({ labels, bottom }: { readonly labels: readonly AxisLabel<unknown>[]; readonly bottom: number }) {
  return (
    <g class="axis">
      {labels.map(({ x, text, anchor }, index) => (
        <g key={index}>
          <line x1={x} x2={x} y1="0" y2={bottom} />
          <text x={x} y={bottom + 14} text-anchor={anchor}>
            {text}
          </text>
        </g>
      ))}
    </g>
  );
}

/** Something in a row that can be pointed at. */
export interface Mark {
  /** Where it is in the address: `step/3`. Several for a mark that stands for several things. */
  readonly keys: readonly string[];
  /** All of it in words, for the tooltip and for who cannot see the drawing. */
  readonly words: string;
  readonly draw: () => ComponentChildren;
}

interface Tip {
  readonly x: number;
  readonly y: number;
  readonly words: string;
}

interface FigureProps {
  readonly label: string;
  readonly children: (
    width: number,
    point: (event: TargetedEvent<Element>, words?: string) => void,
  ) => ComponentChildren;
}

/** Half of what a tooltip may be wide. */
const TIP_HALF = 170;

/** A drawing as wide as its column. */
export function Figure({ label, children }: FigureProps) {
  const { ref, width } = useWidth<HTMLDivElement>();
  const [tip, setTip] = useState<Tip>();
  const point = (event: TargetedEvent<Element>, words?: string): void => {
    const frame = ref.current?.getBoundingClientRect();
    if (words === undefined || frame === undefined) {
      setTip(undefined);
      return;
    }
    const mark = event.currentTarget.getBoundingClientRect();
    const middle = Math.max(frame.left, mark.left) + Math.min(mark.width, frame.right - mark.left) / 2 - frame.left;
    const x = Math.min(Math.max(middle, TIP_HALF), Math.max(frame.width - TIP_HALF, TIP_HALF));
    setTip({ x, y: mark.bottom - frame.top + 6, words });
  };
  return (
    <div class="drawing" ref={ref} role="group" aria-label={label}>
      {width > 0 && children(width, point)}
      {tip !== undefined && (
        <div class="tip" role="tooltip" style={{ left: `${tip.x}px`, top: `${tip.y}px` }}>
          {tip.words}
        </div>
      )}
    </div>
  );
}

const STEPS: Readonly<Record<string, (at: number, count: number) => number>> = {
  ArrowRight: (at, count) => Math.min(at + 1, count - 1),
  ArrowLeft: (at) => Math.max(at - 1, 0),
  Home: () => 0,
  End: (_at, count) => count - 1,
};

interface RowProps {
  readonly id: string;
  readonly label: string;
  readonly marks: readonly Mark[];
  readonly selected: string;
  readonly point: (event: TargetedEvent<Element>, words?: string) => void;
}

/** A row of marks. */
export function Row({ id, label, marks, selected, point }: RowProps) {
  const [at, setAt] = useState(0);
  const group = useRef<SVGGElement>(null);
  const walk = (event: TargetedKeyboardEvent<SVGGElement>): void => {
    const step = STEPS[event.key];
    if (step === undefined) return;
    event.preventDefault();
    group.current?.querySelectorAll<SVGElement>('a')[step(at, marks.length)]?.focus();
  };
  const home = Math.min(at, marks.length - 1);
  return (
    <g ref={group} role="group" aria-label={`${label}, ${marks.length}`} onKeyDown={walk}>
      {marks.map(({ keys, words, draw }, index) => {
        const isSelected = keys.includes(selected);
        return (
          <a
            key={keys[0]}
            href={`#${id}/${keys[0] ?? ''}`}
            data-at={keys.map((key) => `${id}/${key}`).join(' ')}
            tabIndex={index === home ? 0 : -1}
            class={isSelected ? 'mark selected' : 'mark'}
            aria-label={words}
            aria-current={isSelected ? 'true' : undefined}
            onFocus={(event: TargetedEvent<Element>) => {
              setAt(index);
              // What is selected is in the panel below already.
              if (!isSelected) point(event, words);
            }}
            onBlur={(event: TargetedEvent<Element>) => point(event)}
            onMouseEnter={(event: TargetedEvent<Element>) => point(event, words)}
            onMouseLeave={(event: TargetedEvent<Element>) => point(event)}
          >
            {draw()}
          </a>
        );
      })}
    </g>
  );
}

// pgx at its defaults: it prepares each statement under a name, and talks binary.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"

	. "../report"
)

var background = context.Background()

func session(work func(*pgx.Conn)) {
	connection, err := pgx.Connect(background, os.ExpandEnv("sslmode=${PGSSLMODE}"))
	Must(err)
	defer connection.Close(background)
	work(connection)
}

type querier interface {
	QueryRow(context.Context, string, ...interface{}) pgx.Row
	Exec(context.Context, string, ...interface{}) (pgconn.CommandTag, error)
}

func number(where querier, text string, parameters ...interface{}) (found int64) {
	Must(where.QueryRow(background, text, parameters...).Scan(&found))
	return
}

func words(where querier, text string, parameters ...interface{}) (found string) {
	Must(where.QueryRow(background, text, parameters...).Scan(&found))
	return
}

func exec(where querier, text string, parameters ...interface{}) {
	_, err := where.Exec(background, text, parameters...)
	Must(err)
}

func fails(where querier, sqlstate string, text string, parameters ...interface{}) {
	_, err := where.Exec(background, text, parameters...)
	var told *pgconn.PgError
	if !errors.As(err, &told) {
		panic(fmt.Sprintf("no error of the server: %v", err))
	}
	Equal(told.Code, sqlstate)
}

func noted(id int) (count int64) {
	session(func(other *pgx.Conn) {
		count = number(other, "SELECT count(*) FROM (SELECT id FROM "+Table+" WHERE id = $1 FOR SHARE) AS found", id)
	})
	return
}

func begin(connection *pgx.Conn) pgx.Tx {
	transaction, err := connection.Begin(background)
	Must(err)
	return transaction
}

func types() {
	session(func(connection *pgx.Conn) {
		moment := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
		one, two := int32(1), int32(2)
		first, last := "a", `with "quotes", {braces}`
		var (
			integer  int32
			bigint   int64
			numeric  string
			text     string
			binary   []byte
			stamp    time.Time
			json     map[string][]*int
			integers []*int32
			texts    []*string
			boolean  bool
			date     *time.Time
		)
		Must(connection.QueryRow(background,
			"SELECT $1::integer, $2::bigint, $3::numeric::text, $4::text, $5::bytea, $6::timestamptz, $7::jsonb,"+
				" $8::integer[], $9::text[], $10::boolean, $11::date",
			2147483647, int64(-9007199254740993), Numeric, Unicode, []byte("\x00\xff'\\"), moment,
			map[string][]*int{"a": {new(int), nil}}, []*int32{&one, &two, nil}, []*string{&first, nil, &last}, true, nil,
		).Scan(&integer, &bigint, &numeric, &text, &binary, &stamp, &json, &integers, &texts, &boolean, &date))
		Equal(integer, 2147483647)
		Equal(bigint, int64(-9007199254740993))
		Equal(numeric, Numeric)
		Equal(text, Unicode)
		Equal(binary, []byte("\x00\xff'\\"))
		Equal(stamp.UTC(), moment)
		Equal(len(json["a"]) == 2 && *json["a"][0] == 0 && json["a"][1] == nil, true)
		Equal(len(integers) == 3 && *integers[0] == 1 && *integers[1] == 2 && integers[2] == nil, true)
		Equal(len(texts) == 3 && *texts[0] == first && texts[1] == nil && *texts[2] == last, true)
		Equal(boolean, true)
		Equal(date == nil, true)
	})
}

func prepared() {
	session(func(connection *pgx.Conn) {
		_, err := connection.Prepare(background, "plus", "SELECT $1::integer + 1")
		Must(err)
		for each := 0; each < 20; each++ {
			Equal(number(connection, "plus", each), each+1)
			Equal(words(connection, "SELECT $1::text || 'x'", fmt.Sprint(each)), fmt.Sprintf("%dx", each))
			transaction := begin(connection)
			Equal(number(transaction, "plus", each), each+1)
			Must(transaction.Commit(background))
		}
		Must(connection.Deallocate(background, "plus"))
		fails(connection, "42601", "plus")
	})
}

func savepoint() {
	session(func(connection *pgx.Conn) {
		transaction := begin(connection)
		insert := "INSERT INTO " + Table + " VALUES ($1)"
		exec(transaction, insert, 300)
		// A transaction in a transaction is a savepoint.
		inner, err := transaction.Begin(background)
		Must(err)
		fails(inner, "23505", insert, 300)
		Must(inner.Rollback(background))
		exec(transaction, insert, 301)
		Must(transaction.Commit(background))
		Equal(noted(300)+noted(301), 2)
	})
}

func errorInTransaction() {
	session(func(connection *pgx.Conn) {
		for time := 0; time < 3; time++ {
			transaction := begin(connection)
			fails(transaction, "22012", "SELECT 1/$1::integer", 0)
			fails(transaction, "25P02", "SELECT $1::integer", 1)
			Must(transaction.Rollback(background))
			Equal(number(connection, "SELECT 1"), 1)
		}
	})
}

func copyIn() {
	session(func(connection *pgx.Conn) {
		rows := make([][]interface{}, 10000)
		for each := range rows {
			rows[each] = []interface{}{int32(1000000 + each), Unicode}
		}
		count, err := connection.CopyFrom(background, pgx.Identifier{Table}, []string{"id", "note"},
			pgx.CopyFromRows(rows))
		Must(err)
		Equal(count, 10000)
	})
}

func copyOut() {
	session(func(connection *pgx.Conn) {
		var out bytes.Buffer
		_, err := connection.PgConn().CopyTo(background, &out,
			"COPY (SELECT generate_series(10000, 19999)) TO STDOUT")
		Must(err)
		Equal(out.Len(), 60000)
	})
}

func cursor() {
	session(func(connection *pgx.Conn) {
		transaction := begin(connection)
		exec(transaction, "DECLARE portions CURSOR FOR SELECT generate_series(1, 10000)")
		sum := 0
		for more := true; more; {
			more = false
			rows, err := transaction.Query(background, "FETCH 100 FROM portions")
			Must(err)
			for rows.Next() {
				var one int
				Must(rows.Scan(&one))
				sum += one
				more = true
			}
			Must(rows.Err())
		}
		Must(transaction.Commit(background))
		Equal(sum, 50005000)
	})
}

func cancel() {
	session(func(connection *pgx.Conn) {
		stopped := make(chan error, 1)
		go func() {
			time.Sleep(500 * time.Millisecond)
			stopped <- connection.PgConn().CancelRequest(background)
		}()
		fails(connection, "57014", "SELECT pg_sleep(30)")
		Must(<-stopped)
		Equal(number(connection, "SELECT 1"), 1)
	})
}

func listen() {
	session(func(listener *pgx.Conn) {
		session(func(sender *pgx.Conn) {
			exec(listener, "LISTEN pgx_news")
			limited, done := context.WithTimeout(background, 10*time.Second)
			defer done()
			for each := 0; each < 3; each++ {
				exec(sender, "SELECT pg_notify('pgx_news', $1)", fmt.Sprint(each))
				heard, err := listener.WaitForNotification(limited)
				Must(err)
				Equal(heard.Payload, each)
			}
		})
	})
}

func batch() {
	session(func(connection *pgx.Conn) {
		sent := &pgx.Batch{}
		for each := 0; each < 100; each++ {
			sent.Queue("SELECT $1::integer", each)
		}
		results := connection.SendBatch(background, sent)
		for each := 0; each < 100; each++ {
			var got int
			Must(results.QueryRow().Scan(&got))
			Equal(got, each)
		}
		Must(results.Close())
		inserts := &pgx.Batch{}
		for each := 500; each < 600; each++ {
			inserts.Queue("INSERT INTO "+Table+" (id) VALUES ($1)", each)
		}
		Must(connection.SendBatch(background, inserts).Close())
		Equal(number(connection, "SELECT count(*) FROM "+Table+" WHERE id BETWEEN $1 AND $2", 500, 599), 100)
	})
}

func settings() {
	session(func(connection *pgx.Conn) {
		session(func(other *pgx.Conn) {
			exec(connection, "SET work_mem = '7MB'")
			for time := 0; time < 20; time++ {
				Equal(words(connection, "SHOW work_mem"), "7MB")
				Equal(words(other, "SHOW work_mem") == "7MB", false)
			}
		})
	})
}

func manyConnections() {
	total := func() (sum int64) {
		session(func(connection *pgx.Conn) {
			sum = number(connection, "SELECT number FROM "+Table+" WHERE id = 0 FOR SHARE")
		})
		return
	}
	before := total()
	var all sync.WaitGroup
	trouble := make(chan string, 8)
	for each := 0; each < 8; each++ {
		all.Add(1)
		go func() {
			defer all.Done()
			defer func() {
				if said := recover(); said != nil {
					trouble <- fmt.Sprint(said)
				}
			}()
			session(func(connection *pgx.Conn) {
				for time := 0; time < 10; time++ {
					transaction := begin(connection)
					exec(transaction, "UPDATE "+Table+" SET number = number + 1 WHERE id = $1", 0)
					Must(transaction.Commit(background))
				}
			})
		}()
	}
	all.Wait()
	close(trouble)
	var said []string
	for one := range trouble {
		said = append(said, one)
	}
	Equal(strings.Join(said, "; "), "")
	Equal(total()-before, 80)
}

func main() {
	Run("golang-github-jackc-pgx-v4-dev", map[string]func(){
		"connect": func() {
			session(func(connection *pgx.Conn) { Equal(number(connection, "SELECT 1"), 1) })
		},
		"types":    types,
		"prepared": prepared,
		"commit": func() {
			session(func(connection *pgx.Conn) {
				transaction := begin(connection)
				exec(transaction, "INSERT INTO "+Table+" VALUES ($1, $2)", 100, "kept")
				Must(transaction.Commit(background))
				Equal(noted(100), 1)
			})
		},
		"rollback": func() {
			session(func(connection *pgx.Conn) {
				transaction := begin(connection)
				exec(transaction, "INSERT INTO "+Table+" VALUES ($1, $2)", 200, "gone")
				Must(transaction.Rollback(background))
				Equal(noted(200), 0)
			})
		},
		"savepoint": savepoint,
		"error": func() {
			session(func(connection *pgx.Conn) {
				for time := 0; time < 3; time++ {
					fails(connection, "22012", "SELECT 1/$1::integer", 0)
					fails(connection, "42601", "SELEC 1")
					Equal(number(connection, "SELECT 1"), 1)
				}
			})
		},
		"error_in_transaction": errorInTransaction,
		"copy_in":              copyIn,
		"copy_out":             copyOut,
		"cursor":               cursor,
		"cancel":               cancel,
		"listen":               listen,
		"big_row": func() {
			session(func(connection *pgx.Conn) { Equal(words(connection, "SELECT $1::text", Big) == Big, true) })
		},
		"batch":            batch,
		"settings":         settings,
		"many_connections": manyConnections,
		"replica": func() {
			session(func(connection *pgx.Conn) {
				Until(func() bool { return words(connection, "SELECT pg_is_in_recovery()::text") == "true" })
			})
		},
		"read_your_write": func() {
			session(func(connection *pgx.Conn) {
				for each := 700; each < 750; each++ {
					exec(connection, "INSERT INTO "+Table+" VALUES ($1)", each)
					Equal(number(connection, "SELECT id FROM "+Table+" WHERE id = $1", each), each)
				}
			})
		},
	})
}

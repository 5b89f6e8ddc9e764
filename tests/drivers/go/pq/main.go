// lib/pq behind database/sql.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/lib/pq"

	. "../report"
)

var background = context.Background()

// session gives one connection of a pool of its own.
func session(work func(*sql.Conn)) {
	db := open()
	defer db.Close()
	connection, err := db.Conn(background)
	Must(err)
	defer connection.Close()
	work(connection)
}

func open() *sql.DB {
	db, err := sql.Open("postgres", os.ExpandEnv("sslmode=${PGSSLMODE}"))
	Must(err)
	return db
}

type querier interface {
	QueryRowContext(context.Context, string, ...interface{}) *sql.Row
}

func value(where querier, text string, parameters ...interface{}) (found string) {
	Must(where.QueryRowContext(background, text, parameters...).Scan(&found))
	return
}

func exec(connection *sql.Conn, text string, parameters ...interface{}) {
	_, err := connection.ExecContext(background, text, parameters...)
	Must(err)
}

func fails(err error, sqlstate string) {
	told, is := err.(*pq.Error)
	if !is {
		panic(fmt.Sprintf("no error of the server: %v", err))
	}
	Equal(string(told.Code), sqlstate)
}

func failing(_ interface{}, err error) error { return err }

func noted(number int) (count string) {
	session(func(other *sql.Conn) {
		text := "SELECT count(*) FROM (SELECT id FROM " + Table + " WHERE id = $1 FOR SHARE) AS found"
		count = value(other, text, number)
	})
	return
}

func begin(connection *sql.Conn) *sql.Tx {
	transaction, err := connection.BeginTx(background, nil)
	Must(err)
	return transaction
}

func types() {
	session(func(connection *sql.Conn) {
		moment := time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
		var (
			integer  int32
			bigint   int64
			numeric  string
			text     string
			bytes    []byte
			stamp    time.Time
			json     string
			integers []sql.NullInt64
			texts    []sql.NullString
			boolean  bool
			date     sql.NullTime
		)
		Must(connection.QueryRowContext(background,
			"SELECT $1::integer, $2::bigint, $3::numeric, $4::text, $5::bytea, $6::timestamptz, $7::jsonb,"+
				" $8::integer[], $9::text[], $10::boolean, $11::date",
			2147483647, int64(-9007199254740993), Numeric, Unicode, []byte("\x00\xff'\\"), moment,
			`{"a": [1, null]}`, "{1,2,NULL}", `{a,NULL,"with \"quotes\", {braces}"}`, true, nil,
		).Scan(&integer, &bigint, &numeric, &text, &bytes, &stamp, &json, pq.Array(&integers), pq.Array(&texts),
			&boolean, &date))
		Equal(integer, 2147483647)
		Equal(bigint, int64(-9007199254740993))
		Equal(numeric, Numeric)
		Equal(text, Unicode)
		Equal(bytes, []byte("\x00\xff'\\"))
		Equal(stamp.UTC(), moment)
		Equal(json, `{"a": [1, null]}`)
		Equal(integers, []sql.NullInt64{{1, true}, {2, true}, {}})
		Equal(texts, []sql.NullString{{"a", true}, {}, {`with "quotes", {braces}`, true}})
		Equal(boolean, true)
		Equal(date.Valid, false)
	})
}

func prepared() {
	session(func(connection *sql.Conn) {
		plus, err := connection.PrepareContext(background, "SELECT $1::integer + 1")
		Must(err)
		joined, err := connection.PrepareContext(background, "SELECT $1::text || 'x'")
		Must(err)
		for number := 0; number < 20; number++ {
			var one, other string
			Must(plus.QueryRow(number).Scan(&one))
			Equal(one, number+1)
			Must(joined.QueryRow(fmt.Sprint(number)).Scan(&other))
			Equal(other, fmt.Sprintf("%dx", number))
			transaction := begin(connection)
			Must(transaction.Stmt(plus).QueryRow(number).Scan(&one))
			Equal(one, number+1)
			Must(transaction.Commit())
		}
		Must(plus.Close())
		Must(joined.Close())
	})
}

func savepoint() {
	session(func(connection *sql.Conn) {
		transaction := begin(connection)
		insert := "INSERT INTO " + Table + " VALUES ($1)"
		Must(failing(transaction.Exec(insert, 300)))
		Must(failing(transaction.Exec("SAVEPOINT here")))
		fails(failing(transaction.Exec(insert, 300)), "23505")
		Must(failing(transaction.Exec("ROLLBACK TO here")))
		Must(failing(transaction.Exec(insert, 301)))
		Must(transaction.Commit())
		Equal(noted(300)+noted(301), "11")
	})
}

func errorInTransaction() {
	session(func(connection *sql.Conn) {
		for time := 0; time < 3; time++ {
			transaction := begin(connection)
			fails(failing(transaction.Exec("SELECT 1/$1::integer", 0)), "22012")
			fails(failing(transaction.Exec("SELECT $1::integer", 1)), "25P02")
			Must(transaction.Rollback())
			Equal(value(connection, "SELECT 1"), 1)
		}
	})
}

func copyIn() {
	session(func(connection *sql.Conn) {
		transaction := begin(connection)
		rows, err := transaction.Prepare(pq.CopyIn(Table, "id", "note"))
		Must(err)
		for number := 0; number < 10000; number++ {
			Must(failing(rows.Exec(1000000+number, Unicode)))
		}
		Must(failing(rows.Exec()))
		Must(rows.Close())
		Must(transaction.Commit())
		Equal(value(connection, "SELECT count(*) FROM "+Table+" WHERE id >= $1", 1000000), 10000)
	})
}

func cursor() {
	session(func(connection *sql.Conn) {
		transaction := begin(connection)
		Must(failing(transaction.Exec("DECLARE portions CURSOR FOR SELECT generate_series(1, 10000)")))
		sum := 0
		for more := true; more; {
			more = false
			rows, err := transaction.Query("FETCH 100 FROM portions")
			Must(err)
			for rows.Next() {
				var number int
				Must(rows.Scan(&number))
				sum += number
				more = true
			}
			Must(rows.Close())
		}
		Must(transaction.Commit())
		Equal(sum, 50005000)
	})
}

func cancel() {
	session(func(connection *sql.Conn) {
		// A context that ends makes lib/pq cancel the statement.
		brief, done := context.WithTimeout(background, 500*time.Millisecond)
		defer done()
		fails(failing(connection.ExecContext(brief, "SELECT pg_sleep(30)")), "57014")
	})
	session(func(connection *sql.Conn) { Equal(value(connection, "SELECT 1"), 1) })
}

func listen() {
	listener := pq.NewListener(os.ExpandEnv("sslmode=${PGSSLMODE}"), time.Second, time.Second, nil)
	defer listener.Close()
	Must(listener.Listen("pq_news"))
	session(func(sender *sql.Conn) {
		for number := 0; number < 3; number++ {
			exec(sender, "SELECT pg_notify('pq_news', $1)", fmt.Sprint(number))
		}
	})
	for number := 0; number < 3; number++ {
		select {
		case heard := <-listener.Notify:
			Equal(heard.Extra, number)
		case <-time.After(10 * time.Second):
			panic("nothing came within 10 s")
		}
	}
}

func settings() {
	session(func(connection *sql.Conn) {
		session(func(other *sql.Conn) {
			exec(connection, "SET work_mem = '7MB'")
			for time := 0; time < 20; time++ {
				Equal(value(connection, "SHOW work_mem"), "7MB")
				Equal(value(other, "SHOW work_mem") == "7MB", false)
			}
		})
	})
}

func manyConnections() {
	db := open()
	defer db.Close()
	db.SetMaxOpenConns(8)
	total := "SELECT number FROM " + Table + " WHERE id = 0 FOR SHARE"
	var before, after int
	Must(db.QueryRow(total).Scan(&before))
	var all sync.WaitGroup
	for each := 0; each < 8; each++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for time := 0; time < 10; time++ {
				transaction, err := db.Begin()
				if err != nil {
					return // it is missing in the sum
				}
				transaction.Exec("UPDATE "+Table+" SET number = number + 1 WHERE id = $1", 0)
				transaction.Commit()
			}
		}()
	}
	all.Wait()
	Must(db.QueryRow(total).Scan(&after))
	Equal(after-before, 80)
}

func main() {
	Run("golang-github-lib-pq-dev", map[string]func(){
		"connect": func() {
			session(func(connection *sql.Conn) { Equal(value(connection, "SELECT 1"), 1) })
		},
		"types":    types,
		"prepared": prepared,
		"commit": func() {
			session(func(connection *sql.Conn) {
				transaction := begin(connection)
				Must(failing(transaction.Exec("INSERT INTO "+Table+" VALUES ($1, $2)", 100, "kept")))
				Must(transaction.Commit())
				Equal(noted(100), 1)
			})
		},
		"rollback": func() {
			session(func(connection *sql.Conn) {
				transaction := begin(connection)
				Must(failing(transaction.Exec("INSERT INTO "+Table+" VALUES ($1, $2)", 200, "gone")))
				Must(transaction.Rollback())
				Equal(noted(200), 0)
			})
		},
		"savepoint": savepoint,
		"error": func() {
			session(func(connection *sql.Conn) {
				for time := 0; time < 3; time++ {
					fails(failing(connection.ExecContext(background, "SELECT 1/$1::integer", 0)), "22012")
					fails(failing(connection.ExecContext(background, "SELEC 1")), "42601")
					Equal(value(connection, "SELECT 1"), 1)
				}
			})
		},
		"error_in_transaction": errorInTransaction,
		"copy_in":              copyIn,
		"cursor":               cursor,
		"cancel":               cancel,
		"listen":               listen,
		"big_row": func() {
			session(func(connection *sql.Conn) { Equal(value(connection, "SELECT $1::text", Big) == Big, true) })
		},
		// It has no pipeline: a string of statements is its batch.
		"batch": func() {
			session(func(connection *sql.Conn) {
				text := ""
				for number := 500; number < 600; number++ {
					text += fmt.Sprintf("INSERT INTO %s (id) VALUES (%d); ", Table, number)
				}
				exec(connection, text)
				Equal(value(connection, "SELECT count(*) FROM "+Table+" WHERE id BETWEEN $1 AND $2", 500, 599), 100)
			})
		},
		"settings":         settings,
		"many_connections": manyConnections,
		"replica": func() {
			session(func(connection *sql.Conn) {
				Until(func() bool { return value(connection, "SELECT pg_is_in_recovery()") == "true" })
			})
		},
		"read_your_write": func() {
			session(func(connection *sql.Conn) {
				for number := 700; number < 750; number++ {
					exec(connection, "INSERT INTO "+Table+" VALUES ($1)", number)
					Equal(value(connection, "SELECT id FROM "+Table+" WHERE id = $1", number), number)
				}
			})
		},
	})
}
